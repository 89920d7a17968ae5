"""A report with everything that one can have."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from headrace.monitoring.drift import compare
from headrace.monitoring.performance import Estimate
from headrace.services.monitoring.hours import FeatureHour, Hour
from headrace.services.monitoring.quality import EstimateBesideTruth, Quality
from headrace.services.monitoring.report import AlarmReport, MonitorReport
from headrace.services.monitoring.requests import RequestCounts
from tests.monitoring.rows import contract, profile, rows

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)


def quality(**changed: Any) -> Quality:
    values = {"metric": "accuracy", "rows": 200, "all_rows": 900, "value": 0.81, "low": 0.74, "high": 0.87}
    return Quality.model_validate(values | {"reference": 0.93, "has_fallen": True} | changed)


def report(**changed: Any) -> MonitorReport:
    """Of a model whose field `distance` has shifted and which has lost a quarter of its hours."""
    window = rows(3, 400, shift=1.2)
    window.loc[::4, "carrier"] = None
    drift = compare(profile(), window, contract())
    evidence = {one.name: 9.0 if one.name == "distance" else -0.4 for one in drift}
    alarm = AlarmReport(
        raised=True,
        since="2026-11-29T18",
        features=["distance"],
        p_value=1e-9,
        alpha=0.05,
        windows=72,
        evidence=8.3,
        by_feature=evidence,
    )
    counts = [
        RequestCounts(at=AT.timestamp() - 3600 * ago, requests=500, refused={"against the contract": 4 * (24 - ago)}, unseen=3)
        for ago in range(23, -1, -1)
    ]
    values: dict[str, Any] = {
        "model": "trips",
        "version": "3",
        "at": AT.isoformat(),
        "new_hours": 1,
        "rows": 400,
        "alarm": alarm,
        "drift": drift,
        "estimates": [
            Estimate(metric="accuracy", rows=400, value=0.9, low=0.87, high=0.93),
            Estimate(metric="auc", rows=400, reason="not estimated: all rows are of one class"),
        ],
        "beside_truths": [EstimateBesideTruth(metric="accuracy", rows=180, estimated=0.9, low=0.86, high=0.94, real=0.81)],
        "quality": [quality()],
        "worse": ["accuracy: the error 0.19 is more than 5% above the reference 0.07 (p = 1e-9, look 3)"],
        "requests": counts,
        "notes": ["2 rows have several different true answers: the latest one counts"],
    }
    return MonitorReport.model_validate(values | changed)


def series(hours: int = 72) -> list[Hour]:
    """Hours in which `distance` moves away from training."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(hours):
        at = AT - timedelta(hours=hours - number)
        shift = max(0.0, (number - hours / 2) / hours)
        one = FeatureHour(distance=round(abs(rng.normal(0.03, 0.01)) + shift, 4), missing=0.0, unseen=round(shift / 3, 4))
        other = FeatureHour(distance=round(abs(rng.normal(0.03, 0.01)), 4), missing=0.25, unseen=0.0)
        found.append(Hour(hour=f"{at:%Y-%m-%dT%H}", rows=50, features={"distance": one, "carrier": other, "hour": other}))
    return found

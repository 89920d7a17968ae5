"""The report of one look at a model: for machines as JSON, for people as lines of a terminal and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.errors import DamagedFile, NewerFile
from headrace.files import read_json
from headrace.monitoring.drift import FeatureDrift
from headrace.monitoring.performance import Estimate
from headrace.project import Project
from headrace.services.monitoring.quality import EstimateBesideTruth, Quality
from headrace.services.monitoring.requests import RequestCounts

REPORT_VERSION = 2
MOST_SHOWN = 10
POLICY = "policy.json"
"""The state of the policy of retraining, in the folder of a model."""


class AlarmReport(BaseModel):
    """What the alarm says."""

    model_config = ConfigDict(frozen=True)
    raised: bool
    since: str | None = None
    """The hour of the alarm."""
    features: list[str] = []
    p_value: float
    """A bound on the chance of this much evidence at any time, if nothing has changed."""
    alpha: float
    windows: int
    """Hours with rows since the version was released, or since the last restart."""
    evidence: float = 0.0
    """Base-10 logarithm of the largest e-process, divided by the number of features; an alarm at alpha = 0.05 takes 1.3."""
    by_feature: dict[str, float] = {}
    """Base-10 logarithm of the e-process of each feature."""


class MonitorReport(BaseModel):
    """One look at a model."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = REPORT_VERSION
    model: str
    version: str
    at: str
    new_hours: int
    rows: int
    """Sampled rows of the last day, which `drift` describes."""
    alarm: AlarmReport | None = None
    drift: list[FeatureDrift] = []
    """Features with their distance from training, the largest first."""
    estimates: list[Estimate] = []
    """Of the quality in the last day, from the model's own probabilities; the gate's metric first."""
    beside_truths: list[EstimateBesideTruth] = []
    """Estimates for rows whose true answers are known by now, beside what these say."""
    quality: list[Quality] = []
    """By true answers: one metric, or one for each of several targets."""
    worse: list[str] = []
    """Why the model should be trained again because of its true answers (`headrace.evaluation.retraining_policy`)."""
    requests: list[RequestCounts] = []
    """What its replicas counted between two looks, oldest first."""
    notes: list[str] = []

    @property
    def is_alarming(self) -> bool:
        return bool(self.alarm and self.alarm.raised) or any(one.has_fallen for one in self.quality)

    @property
    def reasons(self) -> list[str]:
        """Why the model should be looked at, in sentences; empty if nothing is wrong."""
        found = []
        if self.alarm and self.alarm.raised:
            found.append(f"the rows differ from training since {self.alarm.since}: {', '.join(self.alarm.features)}")
        return found + [one.sentence for one in self.quality if one.has_fallen]

    @property
    def requests_of_last_day(self) -> RequestCounts | None:
        """The requests of the looks within a day of this one, added up; None if none was counted."""
        at = datetime.fromisoformat(self.at).timestamp()
        recent = [one for one in self.requests if one.at > at - 24 * 3600]
        refused = Counter[str]()
        for one in recent:
            refused.update(one.refused)
        requests, unseen = sum(one.requests for one in recent), sum(one.unseen for one in recent)
        return RequestCounts(at=at, requests=requests, refused=dict(refused.most_common()), unseen=unseen) if recent else None

    def lines(self) -> Iterator[str]:
        """What a terminal shows."""
        yield f"{self.model}@{self.version}: {self.state}"
        if self.drift:
            yield f"  {self.rows:,} sampled row{'' if self.rows == 1 else 's'} of the last day:"
            yield f"  {'feature':<28} {'distance':>8} {'by chance':>9} {'PSI':>7} {'missing':>8} {'unseen':>7}"
            for one in self.drift[:MOST_SHOWN]:
                values = (one.total_variation, one.expected_by_chance, one.psi, one.missing)
                unseen = one.unseen if one.unseen is not None else one.outside_range
                shown = " ".join(f"{_number(value):>{width}}" for value, width in zip(values, (8, 9, 7, 8), strict=True))
                yield f"  {one.name[:28]:<28} {shown} {_number(unseen):>7}"
        for sentence in self.sentences:
            yield f"  {sentence}"

    @property
    def sentences(self) -> Iterator[str]:
        """What is known of the quality and of the requests, and the notes."""
        yield from (one.sentence for one in self.quality)
        yield from (f"training again would be worth it: {reason}" for reason in self.worse)
        for one in self.estimates:
            if one.value is None:
                yield f"{one.metric} {one.reason}"
            else:
                interval = f"({_number(one.low)} to {_number(one.high)})"
                yield f"estimated {one.metric} {one.value:.4g} {interval}, if its probabilities are right"
        yield from (one.sentence for one in self.beside_truths)
        if (counts := self.requests_of_last_day) is not None:
            refused = sum(counts.refused.values())
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts.refused.items())
            share = f"{refused / counts.requests:.1%}" if counts.requests else "0 %"
            yield f"{counts.requests:,} requests in the last day, {share} refused" + (f": {reasons}" if reasons else "")
            if counts.unseen:
                yield f"{counts.unseen:,} values that no training row had"
        yield from self.notes

    @property
    def state(self) -> str:
        """What the alarm says, in a sentence."""
        if self.is_alarming:
            return "ALARM: " + "; ".join(self.reasons)
        if self.alarm is None:
            return "not compared with training"
        return (
            f"no alarm in {self.alarm.windows:,} hours (p = {self.alarm.p_value:.2g}; at most {self.alarm.alpha:.0%} of models "
            "whose rows do not change ever raise one)"
        )


def folder_of(model: str, project: Project) -> Path:
    """Returns the folder with the reports and the state of the monitoring of a model."""
    return project.state / "monitoring" / model


def last_report(model: str, project: Project) -> MonitorReport | None:
    """Returns the newest report; None before the first one, or if its file is damaged or of another version of
    Headrace."""
    with suppress(DamagedFile, NewerFile, ValidationError):
        stored = read_json(folder_of(model, project) / "report.json", newest=REPORT_VERSION)
        if isinstance(stored, dict) and stored.get("schema_version") == REPORT_VERSION:
            return MonitorReport.model_validate(stored)
    return None


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"

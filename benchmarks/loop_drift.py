"""Measures drift to redeployed: flights of the next month are asked and answered until a new version serves automatically."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator
from typing import Any

import yaml

from benchmarks.release_clone import Clone
from benchmarks.release_measures import Values
from headrace.client import Client
from headrace.client.errors import CallFailed, InvalidInput
from headrace.console import Report
from headrace.data.tables import to_frame
from headrace.errors import HeadraceError
from headrace.recipe.recipe import load_recipe
from headrace.services.monitoring.report import last_report
from headrace.serving.access.tokens import operator_token
from headrace.simulation.arrivals import Arrival, arrivals

RECIPE = "flights"
MONITOR = {"every": "1m", "retrain": {"cooldown": "7d", "per_week": 1}}
ROWS, PAUSE_SECONDS = 20, 1.0
"""Flights of a request, and the time between two."""
GIVE_UP_SECONDS = 1800.0
SCHEDULE_DAYS = 30.4 / 2
"""How long a change waits on average for a retraining once a month."""


def drift_to_redeployed(clone: Clone, report: Report) -> Values:
    """Releases `flights` with a monitor, then asks about the next month and tells the true answers.

    Returns:
        Seconds from the first request to the first answer of the new version, and those until the alarm was found.

    Raises:
        HeadraceError: no new version serves after half an hour.
    """
    path = clone.project.recipes / f"{RECIPE}.yaml"
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**fields, "monitor": MONITOR}, sort_keys=False), encoding="utf-8")
    clone.headrace("run", RECIPE, "--json")
    clone.headrace("up")  # makes the deployment that looks each minute
    arrived = _next_month(clone, report)
    month = calendar.month_name[int(arrived.name)]
    report(f"{RECIPE} is asked about flights of {month}")
    return {**_until_redeployed(clone, arrived, report), "month": month, "schedule_days": SCHEDULE_DAYS}


def _next_month(clone: Clone, report: Report) -> Arrival:
    recipe = load_recipe(RECIPE, clone.project)
    return arrivals(recipe, clone.project, report, by=None, every=None, first=None, rows=20_000)[1]


def _until_redeployed(clone: Clone, arrived: Arrival, report: Report) -> Values:
    start, noticed, answers, first_version = time.perf_counter(), None, 0, None
    requests, failed = 0, 0
    address = f"http://127.0.0.1:{clone.settings.gateway_port}"
    with Client(address, token=operator_token(clone.project), retries=0) as client:  # a lost request is counted
        fields = [field["name"] for field in client.describe(RECIPE)["contract"]["inputs"]]
        for rows, truths in _requests(arrived, fields):
            requests += 1
            try:
                found = client.predict(RECIPE, rows)
            except InvalidInput:
                raise
            except CallFailed as error:
                failed += 1
                report(f"a request failed: {error}")
                continue
            seconds = time.perf_counter() - start
            first_version = first_version or found.version
            if noticed is None and (alarm := _alarm(clone)):
                noticed = {"noticed": seconds, **alarm}
                report(f"alarm after {seconds:.0f} s and {answers:,} true answers")
            if found.version != first_version and noticed is not None:
                report(f"{RECIPE}@{found.version} answers after {seconds:.0f} s")
                return {"seconds": seconds, "answers": answers, **noticed, "requests": requests, "failed": failed}
            if noticed is None:
                client.feedback(found.id, truths)
                answers += len(truths)
            if seconds > GIVE_UP_SECONDS:
                break
            time.sleep(PAUSE_SECONDS)
    raise HeadraceError(
        f"no new version of {RECIPE} serves after {answers:,} true answers", where=str(clone.root), hint="headrace logs worker"
    )


def _requests(arrived: Arrival, fields: list[str]) -> Iterator[tuple[list[dict[str, Any]], list[float]]]:
    """The fields that clients send of flights in random order, and their true minutes in the air."""
    frame = to_frame(arrived.table).sample(frac=1.0, random_state=7)
    for begin in range(0, len(frame), ROWS):
        part = frame.iloc[begin : begin + ROWS]
        truths = [float(value) for value in part["air_time"]]
        records = part[fields].to_dict(orient="records")
        yield [{str(name): value for name, value in record.items()} for record in records], truths


def _alarm(clone: Clone) -> dict[str, float] | None:
    """The quality of the last look, once it has fallen or is worth a training; None before."""
    found = last_report(RECIPE, clone.project)
    if found is None or not found.quality or not (found.worse or any(one.has_fallen for one in found.quality)):
        return None
    return {"error": found.quality[0].value, "reference": found.quality[0].reference}

"""The sampled rows of a version, hour by hour: counted by its alarm, and kept as a series of small numbers for the report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from headrace.console import Report
from headrace.errors import DataError
from headrace.files import read_cached_json, write_json
from headrace.monitoring.drift import compare_values
from headrace.monitoring.features import Values
from headrace.monitoring.profile import Profile
from headrace.monitoring.sampled_rows import sampled_values
from headrace.monitoring.sequential import Alarm, AlarmSettings, AlarmState
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig
from headrace.runtime.contract import Contract
from headrace.runtime.sample_file import HOUR_SECONDS, hour_of
from headrace.runtime.tokenizer import Encoder
from headrace.serving.samples import Window, read_window, sampled_hours

MOST_ROWS = 20_000
"""Rows of a window that are compared."""
SETTLE_SECONDS = 120.0
"""An hour is counted once its replicas have had this long to write its last rows."""
SERIES_HOURS = 14 * 24
"""Hours with rows that the series has, the newest ones."""
SERIES_VERSION = 1


@dataclass(frozen=True)
class Reference:
    """What the rows of a version are compared with, and how they are read."""

    profile: Profile
    contract: Contract
    encoder: Encoder | None
    """Converts texts to the model's own tokens."""

    def values(self, window: Window) -> dict[str, Values]:
        """Returns the values of each feature `(rows,)`."""
        return sampled_values(
            window.inputs, window.answers, window.confidences, self.profile, self.contract, encoder=self.encoder
        )


class FeatureHour(BaseModel):
    """One feature in one hour."""

    model_config = ConfigDict(frozen=True)
    distance: float
    """Total variation from training, without what chance explains; at least 0."""
    missing: float
    unseen: float | None = None
    """Share of values that training did not know, or that are outside of its range."""


class Hour(BaseModel):
    """The sampled rows of one hour."""

    model_config = ConfigDict(frozen=True)
    hour: str
    """In UTC, as `2026-11-24T14`."""
    rows: int
    features: dict[str, FeatureHour]


class Hours:
    """The sampled rows of a version, of all its replicas."""

    def __init__(self, model: str, version: str, project: Project, report: Report) -> None:
        self._model, self._version, self._project = model, version, project
        self.begins = sampled_hours(project, model, version, report)

    def over(self) -> list[float]:
        """The hours whose rows are all written. One that begins later, by a clock that was ahead, is none of them yet."""
        return [begin for begin in self.begins if time.time() > begin + HOUR_SECONDS + SETTLE_SECONDS]

    def ahead(self) -> list[float]:
        """The hours that have not begun: of a clock that was ahead."""
        return [begin for begin in self.begins if begin > time.time() + SETTLE_SECONDS]

    def rows(self, since: float, until: float) -> Window:
        """At most `MOST_ROWS` rows between two times, chosen at random."""
        quiet: Report = lambda line: None  # noqa: E731 - files that are left out were reported
        return read_window(self._project, self._model, self._version, since, until, most_rows=MOST_ROWS, report=quiet)


def count_hours(reference: Reference, hours: Hours, monitor: MonitorConfig, path: Path) -> tuple[AlarmState, int]:
    """Gives the hours that are over to the alarm whose state is at `path`, in order; returns the state, and how many were
    new."""
    settings = AlarmSettings(alpha=monitor.alpha, tolerance=monitor.tolerance, rows=monitor.rows)
    state = AlarmState.read(path)
    try:
        alarm = Alarm(reference.profile, settings, state)
    except DataError:  # other settings: evidence cannot be carried over
        alarm = Alarm(reference.profile, settings)
    new = 0
    for begin in hours.over():
        if alarm.has_counted(hour_of(begin)):
            continue
        alarm.update(hour_of(begin), reference.values(hours.rows(begin, begin + HOUR_SECONDS)))
        new += 1
        alarm.state.write(path)
    if state is None or new:
        alarm.state.write(path)
    return alarm.state, new


def series_of(reference: Reference, hours: Hours, path: Path) -> list[Hour]:
    """Returns the newest hours that are over, oldest first. Those that were computed before come from the file at `path`, which
    is written again; a damaged one is computed again."""
    known = {one.hour: one for one in _read_series(path)}
    found = []
    for begin in hours.over()[-SERIES_HOURS:]:
        name = hour_of(begin)
        found.append(known[name] if name in known else _measure(name, hours.rows(begin, begin + HOUR_SECONDS), reference))
    if [one.hour for one in found] != list(known):
        write_json(path, {"schema_version": SERIES_VERSION, "hours": [one.model_dump(mode="json") for one in found]})
    return found


def _measure(name: str, window: Window, reference: Reference) -> Hour:
    return Hour(hour=name, rows=len(window), features=_features(reference.profile, reference.values(window)))


def _features(profile: Profile, values: Mapping[str, Values]) -> dict[str, FeatureHour]:
    found = {}
    for feature in profile.features:
        if feature.name in values and len(values[feature.name]):
            drift = compare_values(feature, values[feature.name])
            found[feature.name] = FeatureHour(
                distance=round(max(0.0, drift.excess), 4),
                missing=round(drift.missing or 0.0, 4),
                unseen=_rounded(drift.unseen if drift.unseen is not None else drift.outside_range),
            )
    return found


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _read_series(path: Path) -> list[Hour]:
    stored = read_cached_json(path)
    if not isinstance(stored, dict) or stored.get("schema_version") != SERIES_VERSION:
        return []
    try:
        return [Hour.model_validate(one) for one in stored.get("hours", [])]
    except (ValidationError, TypeError):
        return []

"""Alarms whose error rate holds over time: `Alarm.update` with each window, in any rhythm and for as long as one likes.

**What is stated.** If a model's rows have not changed, the chance that its alarm is ever raised, from the start or restart of
the monitoring on, is at most `alpha`: for all features, windows and looks together. Each of F features has an e-process
(`headrace.monitoring.betting`), which ever reaches F/alpha with probability at most alpha/F (Ville 1939); the alarm is raised
by the first that does, and names it. So the chance of naming any unchanged feature is at most alpha too, however features
depend on each other. (Their mean would be stronger against many small changes, but e-processes of different features are no
e-processes in the history of all of them together: Choe & Ramdas 2024, *Combining evidence across filtrations*.)

**What is assumed.** The training rows of the profile are exchangeable among each other, and

- by default, the rows of the windows are exchangeable with them: this is exact for any number of training rows, and any
  deviation is found in time, harmless ones included: a daily rhythm, rows that depend on each other within an hour, a season;
- with `tolerance`, each row has, given the past, a distribution within that total variation distance of training's: differences
  that stay below it raise no alarm, even if they vary from hour to hour. 0.1 standard deviations of a mean are a distance of
  0.04;
- with `rows: correlated`, the same for the mean of a window instead of each row. Windows have to be long enough for that: a day
  where there is a daily rhythm.

Not assumed: a form of the distributions, a number of looks, independent features, a fixed number of rows in a window, or clocks
that go forward: windows are counted in the order in which they come, by their ids.

**After an alarm** the state stays raised until `restart`, which a new version, or a person who has looked, calls. After a
restart with the same profile the statement begins again, and is exact given that the training rows are not an unusual sample;
with a new profile it is exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import DamagedFile, DataError
from headrace.files import read_json, write_text
from headrace.monitoring import betting
from headrace.monitoring.features import Values
from headrace.monitoring.profile import FeatureProfile, Profile

STATE_VERSION = 1
"""Of the schema of an alarm's state."""
MAX_WINDOWS = 4_096
"""Latest windows whose ids are kept, so that each counts once: half a year of hours."""
REGION_SHARE = 0.1
"""Share of `alpha` for the confidence regions of the reference, with a tolerance or correlated rows."""
LOG_10 = math.log(10)


class AlarmSettings(BaseModel):
    """How an alarm decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a model whose rows have not changed ever raises an alarm."""
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    """Total variation distance from training that is harmless."""
    rows: Literal["independent", "correlated"] = "independent"
    """Whether rows of one window may depend on each other."""


class FeatureEvidence(BaseModel):
    """The bets on one feature, and the rows that they depend on. Numbers are per bucket, memory or bettor."""

    seen: list[float]
    memories: list[list[float]]
    squares: list[float]
    log_wealth: list[float]
    radius: float = 0.0


class RaisedAlarm(BaseModel):
    """An alarm: at which window, with what evidence, and for which features."""

    model_config = ConfigDict(frozen=True)
    window: str
    evidence: float
    """Base-10 logarithm of the model's evidence then."""
    features: list[str]
    """The features that have reached the limit, the first one first; more may follow while the alarm stays raised."""


class AlarmState(BaseModel):
    """The state after a window: small, JSON, and all that the next window needs."""

    schema_version: int = STATE_VERSION
    model: str
    version: str | None
    profile: str
    """Digest of the profile."""
    settings: AlarmSettings
    windows: int = 0
    """Windows with rows since the start or restart."""
    rows: int = 0
    """Rows since then, of the feature that has most."""
    last_window: str | None = None
    counted: bool = True
    """Whether the last window that was given was counted; false if it had been counted before."""
    evidence: float = 0.0
    """Base-10 logarithm of the largest e-process, divided by the number of features, after the last window."""
    highest: float = 0.0
    """Its maximum since the start; an alarm at alpha = 0.05 takes 1.3."""
    by_feature: dict[str, float] = {}
    """The same logarithm of each feature's e-process."""
    raised: RaisedAlarm | None = None
    ids: list[str] = []
    """Digests of the latest windows."""
    features: dict[str, FeatureEvidence]

    @property
    def p_value(self) -> float:
        """An anytime-valid p-value: a bound on the chance of this much evidence at any time, if nothing has changed."""
        return float(min(1.0, 10.0**-self.highest))

    def write(self, path: Path) -> None:
        """Writes the state as JSON, completely or not at all."""
        write_text(path, self.model_dump_json() + "\n")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Reads a state; None if the file does not exist.

        Raises:
            DamagedFile: the file is not a state.
            NewerFile: a newer version of Headrace wrote it.
        """
        hint = f"remove {path.name} to start the monitoring of this version again"
        content = read_json(path, hint, STATE_VERSION)
        if content is None and not path.exists():
            return None
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DamagedFile(f"not the state of an alarm: {place}: {first['msg']}", where=str(path), hint=hint) from None


class Alarm:
    """The alarm of one model version. Its whole memory is `state`."""

    def __init__(self, profile: Profile, settings: AlarmSettings | None = None, state: AlarmState | None = None) -> None:
        """Starts an alarm, or continues from `state`.

        Raises:
            DataError: `state` is of another profile, or of other settings than `settings`.
        """
        self._profiles = {feature.name: feature for feature in profile.features}
        self._profile = profile
        if state is None:
            state = _start(profile, settings or AlarmSettings())
        elif state.profile != digest_of(profile):
            raise DataError(
                f"the state is of version {state.version} with another profile; this one is of version {profile.version}",
                where=profile.model,
                hint="start the alarm of a new version without a state",
            )
        elif settings is not None and settings != state.settings:
            raise DataError(
                f"the state was made with {state.settings}, not with {settings}",
                where=profile.model,
                hint="start the alarm again without a state: evidence cannot be carried over to other settings",
            )
        self.state = state

    def update(self, window: str, values: Mapping[str, Values]) -> AlarmState:
        """Counts one window of rows, and returns the new state.

        A window that was counted before changes nothing, so that a run can be repeated after a kill. Without rows, it counts as
        given, and the evidence stays the same. Late rows of a window that was counted are left out.

        Args:
            window: id of the window, the same whenever it is given, for example `2026-11-30T19Z`.
            values: by feature, from `headrace.monitoring.drift.window_values`. A feature that is left out has no rows; one that
                the profile does not have is ignored.
        """
        if self.has_counted(window):
            self.state = self.state.model_copy(update={"counted": False})
            return self.state
        given = {name: column for name, column in values.items() if name in self._profiles and len(column)}
        number = self.state.windows + bool(given)
        features = self.state.features
        if given:
            features = {name: self._bet(name, given.get(name), window, number) for name in features}
        self.state = self.state.model_copy(
            update={
                "windows": number,
                "rows": self.state.rows + max(map(len, given.values()), default=0),
                "last_window": window,
                "counted": True,
                "ids": [*self.state.ids, _digest(window)][-MAX_WINDOWS:],
                "features": features,
            }
        )
        if given:
            self._judge(window)
        return self.state

    def has_counted(self, window: str) -> bool:
        """Whether a window was counted before."""
        return _digest(window) in self.state.ids

    def restart(self) -> AlarmState:
        """Begins again with the same profile, for example once a person has looked at an alarm. Counted windows stay
        counted."""
        ids, fresh = self.state.ids, _start(self._profile, self.state.settings)
        self.state = fresh.model_copy(update={"ids": ids, "last_window": self.state.last_window})
        return self.state

    def _bet(self, name: str, values: Values | None, window: str, number: int) -> FeatureEvidence:
        profile, before = self._profiles[name], self.state.features[name]
        # Ties are broken by numbers that depend on the window's id alone: the same whenever it is given.
        rng = np.random.default_rng(int(_digest(f"{self.state.profile} {name} {window}"), 16))
        counts = np.zeros(len(profile.ranks.gaps)) if values is None else profile.ranks.count(values, rng)
        after = betting.update(_evidence(before), _reference(profile, self.state.settings, before.radius), counts, number)
        return FeatureEvidence(
            seen=after.seen.tolist(),
            memories=after.memories.tolist(),
            squares=after.squares.tolist(),
            log_wealth=after.log_wealth.tolist(),
            radius=before.radius,
        )

    def _judge(self, window: str) -> None:
        state = self.state
        logs = {name: float(betting.log_evidence(_evidence(one), state.windows)) for name, one in state.features.items()}
        features = math.log(len(logs))
        evidence = (max(logs.values()) - features) / LOG_10
        reached = [name for name in sorted(logs, key=lambda name: -logs[name]) if logs[name] - features >= -_log_level(state)]
        raised = state.raised
        if raised is not None:
            further = [name for name in reached if name not in raised.features]
            raised = raised.model_copy(update={"features": [*raised.features, *further]})
        elif reached:
            raised = RaisedAlarm(window=window, evidence=evidence, features=reached)
        self.state = state.model_copy(
            update={
                "evidence": evidence,
                "highest": max(state.highest, evidence),
                "by_feature": {name: value / LOG_10 for name, value in logs.items()},
                "raised": raised,
            }
        )


def digest_of(profile: Profile) -> str:
    """Returns the digest of a profile, by which a state knows it."""
    return hashlib.sha256(profile.model_dump_json().encode()).hexdigest()


def _start(profile: Profile, settings: AlarmSettings) -> AlarmState:
    digest = digest_of(profile)
    level = settings.alpha * REGION_SHARE / len(profile.features)
    features = {}
    for feature in profile.features:
        empty = betting.Evidence.empty(np.array(feature.ranks.gaps, dtype=np.float64))
        radius = 0.0
        if _needs_region(settings):
            rng = np.random.default_rng(int(_digest(f"{digest} {feature.name}"), 16))
            radius = betting.region_radius(np.array(feature.ranks.gaps, dtype=np.float64), level, rng)
        features[feature.name] = FeatureEvidence(
            seen=empty.seen.tolist(),
            memories=empty.memories.tolist(),
            squares=empty.squares.tolist(),
            log_wealth=empty.log_wealth.tolist(),
            radius=radius,
        )
    return AlarmState(model=profile.model, version=profile.version, profile=digest, settings=settings, features=features)


def _log_level(state: AlarmState) -> float:
    """Returns the logarithm of what is left of alpha for the e-processes."""
    share = 1 - REGION_SHARE if _needs_region(state.settings) else 1.0
    return math.log(state.settings.alpha * share)


def _needs_region(settings: AlarmSettings) -> bool:
    return settings.tolerance > 0 or settings.rows == "correlated"


def _reference(profile: FeatureProfile, settings: AlarmSettings, radius: float) -> betting.Reference:
    gaps = np.array(profile.ranks.gaps, dtype=np.float64)
    return betting.Reference(gaps, settings.tolerance, settings.rows == "correlated", np.array(radius))


def _evidence(one: FeatureEvidence) -> betting.Evidence:
    return betting.Evidence(np.array(one.seen), np.array(one.memories), np.array(one.squares), np.array(one.log_wealth))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

"""When a model is trained again: because its rows have changed, or its error on true answers has grown; not too soon after the
last time, and not too often in a week.

A training that was decided and is killed, or meets a fault of the machine, is continued by the next look. It is one attempt.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import Busy, DiskFull, HeadraceError, Interrupted, ServiceError, SourceUnreachable
from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig
from headrace.release import lock
from headrace.services.monitoring.report import POLICY, MonitorReport, folder_of
from headrace.services.monitoring.worsening import mark_trained

WEEK_SECONDS = 7 * 24 * 3600.0
WAITS = "the policy compares each 200 true answers, and waits for more of them after each training"
OF_THE_MACHINE = (ServiceError, Busy, DiskFull, SourceUnreachable, Interrupted)
"""Errors that say nothing about data and model."""
MOST_RUNS = 4
"""Times that one training is begun: one that never ends, for example for want of memory, must not begin at every look."""


@dataclass(frozen=True)
class Decision:
    """Whether to train again, with the reason in a sentence."""

    retrain: bool
    reason: str


def decide(monitor: MonitorConfig, found: MonitorReport, project: Project, now: float | None = None) -> Decision:
    """Decides by the attempts so far; a clock that was set back counts attempts of the future as just made.

    The training of an earlier look that did not end is continued, also once the alarm is over: its data may be in already.
    """
    settings = monitor.retrain
    if settings is not None and is_unfinished(found.model, project):
        if lock.is_held(found.model, project):
            return Decision(False, "it is being trained again by an earlier look")
        return Decision(True, "continuing the training of an earlier look, which was interrupted")
    reasons = reasons_to_train(found)
    if not found.is_alarming and not reasons:
        return Decision(False, "nothing has changed")
    if settings is None:
        return Decision(False, "monitor.retrain is not set, so a person decides: headrace run " + found.model)
    if not reasons:
        return Decision(False, "the quality has fallen, but training again is not worth it yet: " + WAITS)
    now = time.time() if now is None else now
    attempts = [min(at, now) for at in _attempts(found.model, project)]
    if attempts and now - max(attempts) < settings.cooldown_seconds:
        hours = (settings.cooldown_seconds - (now - max(attempts))) / 3600
        return Decision(False, f"it was trained again less than {settings.cooldown} ago; the next time is in {hours:.1f} hours")
    week = sum(now - at < WEEK_SECONDS for at in attempts)
    if week >= settings.per_week:
        often = f"it was trained again {week} times within a week"
        return Decision(False, f"{often}, and monitor.retrain.per_week is {settings.per_week}")
    return Decision(True, "training again, because " + "; ".join(reasons))


def is_unfinished(model: str, project: Project) -> bool:
    """Whether a training that was decided has begun, and has not ended."""
    return 0 < _runs(model, project) < MOST_RUNS


def reasons_to_train(found: MonitorReport) -> list[str]:
    """Returns why a model should be trained again: an alarm of its rows, and what the policy says of its true answers."""
    changed = [f"drift in {', '.join(found.alarm.features)}"] if found.alarm and found.alarm.raised else []
    return changed + found.worse


def count_attempt(found: MonitorReport, project: Project, now: float | None = None) -> None:
    """Records that a training begins, before it does; one that is continued is the same attempt."""
    now = time.time() if now is None else now
    state, runs = _state(found.model, project), _runs(found.model, project)
    if not 0 < runs < MOST_RUNS:
        recent = [at for at in _attempts(found.model, project) if now - at < WEEK_SECONDS]
        state, runs = {**state, "attempts": [*recent, now]}, 0
        if found.worse:
            mark_trained(folder_of(found.model, project) / POLICY)
    write_json(_path(found.model, project), {**state, "runs": runs + 1})


@contextmanager
def attempt(model: str, project: Project, cancelled: type[BaseException]) -> Iterator[None]:
    """The training that `count_attempt` has recorded, as a block.

    After a kill or an error of the machine the next look continues it; otherwise, for example with a model that is refused, it
    ends with the block.

    Args:
        cancelled: what is raised in the block when a person cancels it.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (HeadraceError, cancelled)) and not isinstance(error, OF_THE_MACHINE):
            _end(model, project)
        raise
    _end(model, project)


def _end(model: str, project: Project) -> None:
    state = {name: value for name, value in _state(model, project).items() if name != "runs"}
    write_json(_path(model, project), state)


def is_new_alarm(found: MonitorReport, project: Project) -> bool:
    """Whether this alarm was not announced before: the same version with the same reasons is announced once."""
    return bool(_state(found.model, project).get("announced") != _alarm_key(found))


def mark_announced(found: MonitorReport, project: Project) -> None:
    write_json(_path(found.model, project), {**_state(found.model, project), "announced": _alarm_key(found)})


def _alarm_key(found: MonitorReport) -> list[object]:
    since = found.alarm.since if found.alarm and found.alarm.raised else None
    return [found.version, since, any(one.has_fallen for one in found.quality)]


def _attempts(model: str, project: Project) -> list[float]:
    stored = _state(model, project).get("attempts", [])
    return [float(at) for at in stored] if isinstance(stored, list) else []


def _runs(model: str, project: Project) -> int:
    """How often the training that has not ended was begun; 0 without one."""
    stored = _state(model, project).get("runs", 0)
    return stored if isinstance(stored, int) else 0


def _state(model: str, project: Project) -> dict[str, object]:
    stored = read_cached_json(_path(model, project))
    return stored if isinstance(stored, dict) else {}


def _path(model: str, project: Project) -> Path:
    return folder_of(model, project) / "retraining.json"

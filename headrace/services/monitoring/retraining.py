"""When an alarm trains a model again: not too soon after the last time, not too often in a week."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from headrace.files import read_cached_json, write_json
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig
from headrace.services.monitoring.report import MonitorReport, folder_of

WEEK_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Decision:
    """Whether to train again, with the reason in a sentence."""

    retrain: bool
    reason: str


def decide(monitor: MonitorConfig, found: MonitorReport, project: Project, now: float | None = None) -> Decision:
    """Decides by the attempts so far; a clock that was set back counts attempts of the future as just made."""
    settings = monitor.retrain
    if not found.is_alarming:
        return Decision(False, "nothing has changed")
    if settings is None:
        return Decision(False, "monitor.retrain is not set, so a person decides: headrace run " + found.model)
    now = time.time() if now is None else now
    attempts = [min(at, now) for at in _attempts(found.model, project)]
    if attempts and now - max(attempts) < settings.cooldown_seconds:
        hours = (settings.cooldown_seconds - (now - max(attempts))) / 3600
        return Decision(False, f"it was trained again less than {settings.cooldown} ago; the next time is in {hours:.1f} hours")
    week = sum(now - at < WEEK_SECONDS for at in attempts)
    if week >= settings.per_week:
        often = f"it was trained again {week} times within a week"
        return Decision(False, f"{often}, and monitor.retrain.per_week is {settings.per_week}")
    return Decision(True, "training again, because " + "; ".join(found.reasons))


def count_attempt(found: MonitorReport, project: Project, now: float | None = None) -> None:
    """Records that a training begins, before it does: one that is killed has been an attempt too."""
    now = time.time() if now is None else now
    recent = [at for at in _attempts(found.model, project) if now - at < WEEK_SECONDS]
    write_json(_path(found.model, project), {**_state(found.model, project), "attempts": [*recent, now]})


def is_new_alarm(found: MonitorReport, project: Project) -> bool:
    """Whether this alarm was not announced before: the same version with the same reasons is announced once."""
    return bool(_state(found.model, project).get("announced") != _alarm_key(found))


def mark_announced(found: MonitorReport, project: Project) -> None:
    write_json(_path(found.model, project), {**_state(found.model, project), "announced": _alarm_key(found)})


def _alarm_key(found: MonitorReport) -> list[object]:
    since = found.alarm.since if found.alarm and found.alarm.raised else None
    return [found.version, since, bool(found.quality and found.quality.has_fallen)]


def _attempts(model: str, project: Project) -> list[float]:
    stored = _state(model, project).get("attempts", [])
    return [float(at) for at in stored] if isinstance(stored, list) else []


def _state(model: str, project: Project) -> dict[str, object]:
    stored = read_cached_json(_path(model, project))
    return stored if isinstance(stored, dict) else {}


def _path(model: str, project: Project) -> Path:
    return folder_of(model, project) / "retraining.json"

"""One look at a served model: new hours are counted by its alarm, the last day is compared with training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.console import Report
from headrace.errors import DamagedFile, DataError, RegistryError, UsageError, near_miss
from headrace.evaluation.intervals import wilson_interval
from headrace.files import read_json, write_text
from headrace.monitoring.confidence_sequence import MeanSequence
from headrace.monitoring.drift import FeatureDrift, compare_values
from headrace.monitoring.features import CONFIDENCE
from headrace.monitoring.performance import Estimate
from headrace.monitoring.profile import Profile
from headrace.monitoring.sampled_rows import sampled_values
from headrace.monitoring.sequential import Alarm, AlarmSettings, AlarmState
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig
from headrace.release import history, journal, lookup
from headrace.release.journal import Entry
from headrace.runtime.contract import Contract
from headrace.runtime.sample_file import HOUR_SECONDS, hour_of
from headrace.services.api.feedback_store import joined
from headrace.services.monitoring.report import AlarmReport, MonitorReport, Quality, folder_of, write_report
from headrace.serving.samples import Window, read_window, sampled_hours
from headrace.tracking.registry import Version
from headrace.tracking.runs import client, registry_errors

DAY_SECONDS = 24 * 3600.0
MOST_ROWS = 20_000
"""Rows of a window that are compared."""
SETTLE_SECONDS = 120.0
"""An hour is counted once its replicas have had this long to write its last rows."""
BLOCK, FEWEST = 200, 50
"""True answers that are judged together, in the order in which they came; the newest block counts once it has `FEWEST`. Each
has a share of `alpha` of its own, 1/2, 1/6, 1/12, …, and an interval that holds at each look: so the chance that a quality that
has not changed is ever said to have fallen is at most alpha."""
CLIPPED = 10.0
"""Errors of a regression count up to this many times the mean error on the test rows: the interval needs a bound."""


def look(model: str, monitor: MonitorConfig, project: Project, report: Report = lambda line: None) -> MonitorReport:
    """Looks at the version in production, and writes the report.

    Running it again counts no hour twice, also after a kill.

    Raises:
        UsageError: no version of the model is in production.
        RegistryError: MLflow's database cannot be read.
    """
    released = history.in_force(journal.entries(project, model))
    if released is None:
        names = sorted(history.production(journal.entries(project)))
        raise UsageError(f"no version of {model!r} is in production; {near_miss(model, names)}", hint=f"headrace run {model}")
    found = lookup.find_in_production(released, project)
    version = found.version if found else None
    notes: list[str] = []
    profile = _profile(version, project, notes) if version else None
    contract = Contract.read(version.folder / "contract.json") if version else None
    hours = _Hours(model, released.version, project, report)
    alarm, drift, estimate, new, rows = None, list[FeatureDrift](), None, 0, 0
    if profile is not None and contract is not None:
        state, new = _count_hours(model, released, profile, contract, hours, monitor, project)
        alarm = _alarm_report(state)
        window = hours.rows(time.time() - DAY_SECONDS, time.time() + DAY_SECONDS)  # also of a clock that is ahead
        values, rows = _values(window, profile, contract), len(window)
        compared = [compare_values(one, values[one.name]) for one in profile.features if one.name in values] if rows else []
        drift = sorted(compared, key=lambda one: (-one.excess, one.name))
        estimate = _estimate(contract, values.get(CONFIDENCE))
        if not hours.begins:
            notes.append("no request has been sampled yet")
        elif not state.windows:
            notes.append("the alarm counts an hour once it is over")
    quality = _quality(model, released, version, contract, monitor.alpha, project)
    made = MonitorReport(
        model=model,
        version=released.version,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        new_hours=new,
        rows=rows,
        alarm=alarm,
        drift=drift,
        estimate=estimate,
        quality=quality,
        notes=notes,
    )
    page = write_report(made, project)
    if version is not None:
        with contextlib.suppress(RegistryError), registry_errors(project):  # a run that was deleted has no place for it
            client(project).log_artifact(version.run_id, str(page), "monitoring")
    return made


def restart(model: str, project: Project) -> None:
    """Begins the alarm of the version in production again, once a person has looked at it."""
    released = history.in_force(journal.entries(project, model))
    if released is None:
        raise UsageError(f"no version of {model!r} is in production", hint=f"headrace run {model}")
    folder = _version_folder(model, released.version, project)
    state = AlarmState.read(folder / "alarm.json")
    if state is None:
        return
    alarm = Alarm(Profile.read(folder / "profile.json"), state=state)
    alarm.restart().write(folder / "alarm.json")


def _version_folder(model: str, version: str, project: Project) -> Path:
    return folder_of(model, project) / version


def _profile(version: Version, project: Project, notes: list[str]) -> Profile | None:
    """Returns the profile of a version, from MLflow the first time; None, with a note, where it has none."""
    path = _version_folder(version.model, version.version, project) / "profile.json"
    if not path.exists():
        try:
            with registry_errors(project):
                path.parent.mkdir(parents=True, exist_ok=True)
                downloaded = client(project).download_artifacts(version.run_id, "monitoring/profile.json", str(path.parent))
            write_text(path, Path(downloaded).read_text(encoding="utf-8"))
        except (RegistryError, OSError):
            notes.append(
                f"{version.name} has no reference profile (an older Headrace registered it): the next version will have one"
            )
            return None
    if read_json(path) == {}:
        notes.append("rows of this model cannot be compared one by one, so drift is not computed")
        return None
    return Profile.read(path)


def _count_hours(
    model: str,
    released: Entry,
    profile: Profile,
    contract: Contract,
    hours: _Hours,
    monitor: MonitorConfig,
    project: Project,
) -> tuple[AlarmState, int]:
    """Gives the hours that are over to the alarm, in order; returns its state, and how many were new."""
    path = _version_folder(model, released.version, project) / "alarm.json"
    settings = AlarmSettings(alpha=monitor.alpha, tolerance=monitor.tolerance, rows=monitor.rows)
    state = AlarmState.read(path)
    try:
        alarm = Alarm(profile, settings, state)
    except DataError:  # other settings: evidence cannot be carried over
        alarm = Alarm(profile, settings)
    new = 0
    for begin in hours.over():
        alarm.update(hour_of(begin), _values(hours.rows(begin, begin + HOUR_SECONDS), profile, contract))
        if alarm.state.counted:
            new += 1
            alarm.state.write(path)
    if state is None or new:
        alarm.state.write(path)
    return alarm.state, new


def _alarm_report(state: AlarmState) -> AlarmReport:
    raised = state.raised
    return AlarmReport(
        raised=raised is not None,
        since=raised.window if raised else None,
        features=raised.features if raised else [],
        p_value=state.p_value,
        alpha=state.settings.alpha,
        windows=state.windows,
    )


class _Hours:
    """The sampled rows of a version, hour by hour, of all its replicas."""

    def __init__(self, model: str, version: str, project: Project, report: Report) -> None:
        self._model, self._version, self._project = model, version, project
        self.begins = sampled_hours(project, model, version, report)

    def over(self) -> list[float]:
        """The hours whose rows are all written."""
        return [begin for begin in self.begins if time.time() > begin + HOUR_SECONDS + SETTLE_SECONDS]

    def rows(self, since: float, until: float) -> Window:
        """At most `MOST_ROWS` rows between two times, chosen at random."""
        quiet: Report = lambda line: None  # noqa: E731 - files that are left out were reported
        return read_window(self._project, self._model, self._version, since, until, most_rows=MOST_ROWS, report=quiet)


def _values(window: Window, profile: Profile, contract: Contract) -> dict[str, Any]:
    return sampled_values(window.inputs, window.answers, window.confidences, profile, contract)


def _estimate(contract: Contract, confidences: Any) -> Estimate | None:
    """The accuracy that the probabilities of the answers promise: their mean (CBPE with the top class alone)."""
    if contract.output != "probabilities" or confidences is None:
        return None
    known = confidences[np.isfinite(confidences)]
    if not len(known):
        return None
    value = float(known.mean())
    spread = 1.96 * float(np.sqrt((known * (1 - known)).sum())) / len(known)
    return Estimate(
        metric="accuracy", rows=len(known), value=value, low=max(0.0, value - spread), high=min(1.0, value + spread)
    )


def _quality(
    model: str, released: Entry, version: Version | None, contract: Contract | None, alpha: float, project: Project
) -> Quality | None:
    """The quality by feedback, of the version in production; None without feedback, or for answers that are not one label or
    one number."""
    metrics = _test_metrics(released, version, project)
    if contract is None or contract.output not in ("probabilities", "value"):
        return None
    pairs = [one for one in joined(project, model) if one.version == released.version and one.answer is not None]
    if not pairs:
        return None
    found = _accuracy if contract.output == "probabilities" else _mean_error
    return found(pairs, metrics, alpha)


def _accuracy(pairs: Sequence[Any], metrics: dict[str, float], alpha: float) -> Quality | None:
    reference, rows = metrics.get("accuracy"), int(metrics.get("rows", 0))
    if reference is None:
        return None
    scores = np.array([float(str(one.answer) == str(one.truth)) for one in pairs])
    found = _quality_of("accuracy", scores, reference, 1.0, alpha)
    least = wilson_interval(reference, rows)[0] if rows else reference
    return found.model_copy(update={"has_fallen": found.high < least})


def _mean_error(pairs: Sequence[Any], metrics: dict[str, float], alpha: float) -> Quality | None:
    reference = metrics.get("mae")
    errors = np.array(list(_errors(pairs)))
    if not reference or not len(errors):
        return None
    found = _quality_of("mae", errors, reference, CLIPPED * reference, alpha)
    return found.model_copy(update={"has_fallen": found.low > reference})


def _quality_of(metric: str, scores: NDArray[np.float64], reference: float, highest: float, alpha: float) -> Quality:
    """The mean of the newest block of scores `(rows,)` with its interval, for which a score counts up to `highest`."""
    block, share = _newest_block(scores, alpha)
    low, high = MeanSequence(alpha=share, highest=highest).add("block", np.minimum(block, highest)).interval
    return Quality(
        metric=metric,
        rows=len(block),
        all_rows=len(scores),
        value=float(block.mean()),
        low=low,
        high=high,
        reference=reference,
        has_fallen=False,
    )


def _newest_block(scores: NDArray[np.float64], alpha: float) -> tuple[NDArray[np.float64], float]:
    """Returns the newest block of scores, and its share of alpha."""
    number = max(1, -(-len(scores) // BLOCK))
    if number > 1 and len(scores) - (number - 1) * BLOCK < FEWEST:
        number -= 1
    return scores[(number - 1) * BLOCK : number * BLOCK], alpha / (number * (number + 1))


def _errors(pairs: Sequence[Any]) -> Iterator[float]:
    for one in pairs:
        with contextlib.suppress(TypeError, ValueError):
            error = abs(float(one.answer) - float(one.truth))
            if np.isfinite(error):
                yield error


def _test_metrics(released: Entry, version: Version | None, project: Project) -> dict[str, float]:
    """The metrics on the test rows before the release, from the version's run."""
    if version is None:
        return {}
    try:
        with registry_errors(project):
            stored = client(project).get_run(version.run_id).data.metrics
    except (RegistryError, DamagedFile):
        return {}
    return {name.removeprefix("test_"): float(value) for name, value in stored.items() if name.startswith("test_")}

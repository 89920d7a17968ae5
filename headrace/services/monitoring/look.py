"""One look at a served model: new hours are counted by its alarm, the last day is compared with training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.console import Report
from headrace.errors import DamagedFile, HeadraceError, RegistryError, UsageError, near_miss
from headrace.files import read_json, write_text
from headrace.monitoring.drift import FeatureDrift, compare_values
from headrace.monitoring.performance import Estimate
from headrace.monitoring.profile import Profile
from headrace.monitoring.sequential import Alarm, AlarmState
from headrace.project import Project
from headrace.recipe.monitor import MonitorConfig
from headrace.release import history, journal, lookup
from headrace.release.journal import Entry
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import Encoder
from headrace.services.feedback_store import Joined, corrected_rows, joined
from headrace.services.monitoring import retraining
from headrace.services.monitoring.hours import Hour, Hours, Reference, count_hours, series_of
from headrace.services.monitoring.page import write_report
from headrace.services.monitoring.quality import (
    EstimateBesideTruth,
    Quality,
    Scored,
    estimates_beside_truths,
    estimates_of,
    quality_of,
    scored_by_truths,
)
from headrace.services.monitoring.report import POLICY, AlarmReport, MonitorReport, folder_of
from headrace.services.monitoring.requests import count_requests
from headrace.services.monitoring.worsening import compare_blocks
from headrace.services.sampled_truths import truths_of_window
from headrace.tracking.registry import Version
from headrace.tracking.runs import client, registry_errors

DAY_SECONDS = 24 * 3600.0
WEEK_SECONDS = 7 * DAY_SECONDS


def look(
    model: str,
    monitor: MonitorConfig,
    project: Project,
    report: Report = lambda line: None,
    *,
    metric: str | None = None,
) -> MonitorReport:
    """Looks at the version in production, and writes the report.

    Running it again counts no hour and no true answer twice, also after a kill.

    Args:
        report: called with a line about each file that is left out.
        metric: the gate's, which is estimated and shown first.

    Raises:
        UsageError: no version of the model is in production.
        RegistryError: MLflow's database cannot be read.
    """
    looked = _Look(model, monitor, project, report, metric)
    made, series = looked.report()
    page = write_report(made, series, project)
    if looked.version is not None:
        with contextlib.suppress(RegistryError), registry_errors(project):  # a run that was deleted has no place for it
            client(project).log_artifact(looked.version.run_id, str(page), "monitoring")
    return made


def restart(model: str, project: Project) -> None:
    """Begins the alarm of the version in production again, once a person has looked at it.

    Raises:
        UsageError: no version of the model is in production.
    """
    folder = folder_of(model, project) / _in_production(model, project).version
    state = AlarmState.read(folder / "alarm.json")
    if state is None:
        return
    alarm = Alarm(Profile.read(folder / "profile.json"), state=state)
    alarm.restart().write(folder / "alarm.json")


def _in_production(model: str, project: Project) -> Entry:
    released = history.in_force(journal.entries(project, model))
    if released is None:
        names = sorted(history.production(journal.entries(project)))
        raise UsageError(f"no version of {model!r} is in production; {near_miss(model, names)}", hint=f"headrace run {model}")
    return released


@dataclass(frozen=True)
class _Truths:
    """What true answers say."""

    quality: list[Quality]
    worse: list[str]
    beside: list[EstimateBesideTruth]


class _Look:
    """What one look finds."""

    def __init__(self, model: str, monitor: MonitorConfig, project: Project, report: Report, metric: str | None) -> None:
        self._model, self._monitor, self._project, self._metric = model, monitor, project, metric
        self._released = _in_production(model, project)
        found = lookup.find_in_production(self._released, project)
        self.version = found.version if found else None
        self._folder = folder_of(model, project) / self._released.version
        self._notes: list[str] = []
        self._contract = Contract.read(self.version.folder / "contract.json") if self.version else None
        self._hours = Hours(model, self._released.version, project, report)
        self._reference = self._find_reference()

    def report(self) -> tuple[MonitorReport, list[Hour]]:
        """Returns the report, and the hours for its page."""
        alarm, new, rows = None, 0, 0
        drift, estimates, series = list[FeatureDrift](), list[Estimate](), list[Hour]()
        reference, hours, now = self._reference, self._hours, time.time()
        if reference is not None:
            state, new = count_hours(reference, hours, self._monitor, self._folder / "alarm.json")
            alarm = _alarm_report(state)
            series = series_of(reference, hours, self._folder / "hours.json")
            window = hours.rows(now - DAY_SECONDS, now + DAY_SECONDS)  # also of a clock that is ahead
            values, rows = reference.values(window), len(window)
            features = [one for one in reference.profile.features if len(values.get(one.name, ()))]
            drift = sorted((compare_values(one, values[one.name]) for one in features), key=lambda one: (-one.excess, one.name))
            estimates = estimates_of(reference.contract, window, self._metric)
            self._note_hours(state)
        truths = self._truths()
        path = self._folder / "requests.json"
        made = MonitorReport(
            model=self._model,
            version=self._released.version,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            new_hours=new,
            rows=rows,
            alarm=alarm,
            drift=drift,
            estimates=estimates,
            beside_truths=truths.beside,
            quality=truths.quality,
            worse=truths.worse,
            requests=count_requests(self._project, self._model, self._released.version, path),
            notes=self._notes,
        )
        return made, series

    def _find_reference(self) -> Reference | None:
        if self.version is None or self._contract is None:
            return None
        profile = self._profile(self.version)
        if profile is None:
            return None
        path = self.version.folder / "tokenizer.json"
        encoder = Encoder(path.read_text(encoding="utf-8")) if path.exists() else None
        return Reference(profile, self._contract, encoder)

    def _profile(self, version: Version) -> Profile | None:
        """Returns the profile of a version, from MLflow the first time or if the file is damaged; None, with a note, where it
        has none."""
        path = self._folder / "profile.json"
        with contextlib.suppress(DamagedFile):
            if path.exists():
                return self._read_profile(path)
        try:
            with registry_errors(self._project):
                path.parent.mkdir(parents=True, exist_ok=True)
                store = client(self._project)
                downloaded = store.download_artifacts(version.run_id, "monitoring/profile.json", str(path.parent))
            write_text(path, Path(downloaded).read_text(encoding="utf-8"))
        except (RegistryError, OSError):
            reason = "an older Headrace registered it, or the file is gone"
            self._notes.append(f"{version.name} has no reference profile ({reason}): the next version will have one")
            return None
        return self._read_profile(path)

    def _read_profile(self, path: Path) -> Profile | None:
        if read_json(path) == {}:
            self._notes.append("there are no training rows to compare with one by one, so drift is not computed")
            return None
        return Profile.read(path)

    def _note_hours(self, state: AlarmState) -> None:
        if not self._hours.begins:
            self._notes.append("no request has been sampled yet")
        elif not state.windows:
            self._notes.append("the alarm counts an hour once it is over")
        if ahead := len(self._hours.ahead()):
            hours = "an hour" if ahead == 1 else f"{ahead} hours"
            self._notes.append(f"samples of {hours} in the future, by a clock that was ahead: they count once it has come")

    def _truths(self) -> _Truths:
        """Compares answers with true ones, and estimates with what they say."""
        contract = self._contract
        if contract is None:
            return _Truths([], [], [])
        version = self._released.version
        try:
            pairs = [one for one in joined(self._project, self._model) if one.version == version]
            corrected = corrected_rows(self._project, self._model, version)
        except DamagedFile as error:
            self._notes.append(f"true answers cannot be read: {error}")
            return _Truths([], [], [])
        if corrected:
            rows = "1 row has" if corrected == 1 else f"{corrected:,} rows have"
            self._notes.append(f"{rows} several different true answers: the latest one counts")
        metrics = self._test_metrics() if pairs else {}

        def score(some: Sequence[Any]) -> list[Scored]:
            return list(scored_by_truths(some, contract, metrics, self._metric))

        scored = score(pairs) if pairs else []
        quality = [quality_of(one, self._monitor.alpha / len(scored)) for one in scored]
        path = folder_of(self._model, self._project) / POLICY
        is_training = retraining.is_unfinished(self._model, self._project)
        worse = compare_blocks(version, pairs, score, self._monitor, path, is_training=is_training)
        return _Truths(quality, worse, self._beside_truths(contract, pairs))

    def _beside_truths(self, contract: Contract, pairs: Sequence[Joined]) -> list[EstimateBesideTruth]:
        if not pairs or contract.output not in ("probabilities", "labels"):
            return []
        window = self._hours.rows(time.time() - WEEK_SECONDS, time.time() + DAY_SECONDS)
        truths = list(truths_of_window(self._project, window)) if len(window) else []
        with contextlib.suppress(HeadraceError):  # an estimate is an extra: a look does not fail for it
            return estimates_beside_truths(contract, window, truths, self._metric)
        return []

    def _test_metrics(self) -> dict[str, float]:
        """The metrics on the test rows before the release, from the version's run."""
        if self.version is None:
            return {}
        try:
            with registry_errors(self._project):
                stored = client(self._project).get_run(self.version.run_id).data.metrics
        except (RegistryError, DamagedFile):
            return {}
        return {name.removeprefix("test_"): float(value) for name, value in stored.items() if name.startswith("test_")}


def _alarm_report(state: AlarmState) -> AlarmReport:
    raised = state.raised
    return AlarmReport(
        raised=raised is not None,
        since=raised.window if raised else None,
        features=raised.features if raised else [],
        p_value=state.p_value,
        alpha=state.settings.alpha,
        windows=state.windows,
        evidence=state.evidence,
        by_feature=state.by_feature,
    )

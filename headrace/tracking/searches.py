"""Searches in MLflow: a parent run for each, and a nested run for each of its trials, in the experiment `NAME searches`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.project import Project
from headrace.tracking.database import artifact_root
from headrace.tracking.runs import client, registry_errors

SEARCH, TRIAL, PARENT = "headrace.search", "headrace.trial", "mlflow.parentRunId"
STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
"""States of trials as MLflow has them."""


def experiment_name(recipe: str) -> str:
    """The name of the experiment with the searches of a recipe; no recipe can have it."""
    return f"{recipe} searches"


@dataclass(frozen=True)
class TrialFacts:
    """A trial that is over."""

    number: int
    state: str
    parameters: Mapping[str, str]
    history: Mapping[int, float]
    """The metric by epoch."""
    value: float | None
    seconds: float
    reason: str | None


@dataclass
class SearchRun:
    """The parent run of a search."""

    id: str
    experiment: str
    metric: str
    project: Project
    logged: set[int] = field(default_factory=set)
    """Trials that have a run."""

    def log_missing(self, trials: Iterable[TrialFacts]) -> None:
        """Logs the trials that have no run yet, also those that a kill has kept from it.

        Raises:
            RegistryError: MLflow's database cannot be written.
        """
        for trial in trials:
            if trial.number not in self.logged:
                self._log(trial)
                self.logged.add(trial.number)

    def _log(self, trial: TrialFacts) -> None:
        from mlflow.entities import Metric, Param, RunTag

        store, ended = client(self.project), int(time.time() * 1000)
        began = ended - int(trial.seconds * 1000)
        with registry_errors(self.project):
            tags = {PARENT: self.id, TRIAL: str(trial.number), "state": trial.state}
            run = store.create_run(self.experiment, began, tags, run_name=f"trial {trial.number}")
            name = f"val_{self.metric}"
            metrics = [Metric(f"{name}_by_epoch", value, began, epoch) for epoch, value in trial.history.items()]
            if trial.value is not None:
                metrics.append(Metric(name, trial.value, ended, 0))
            store.log_batch(
                run.info.run_id,
                metrics=metrics[-1000:],
                params=[Param(name, value) for name, value in trial.parameters.items()],
                tags=[RunTag("reason", trial.reason)] if trial.reason else [],
            )
            store.set_terminated(run.info.run_id, STATUS[trial.state], ended)

    def finish(self, values: Mapping[str, float], tags: Mapping[str, str], pictures: Iterable[Path]) -> None:
        """Logs the result and its pictures, and marks the run as finished."""
        from mlflow.entities import Metric, RunTag

        store, now = client(self.project), int(time.time() * 1000)
        with registry_errors(self.project):
            store.log_batch(
                self.id,
                metrics=[Metric(name, value, now, 0) for name, value in values.items()],
                tags=[RunTag(name, value) for name, value in tags.items()],
            )
            for picture in pictures:
                store.log_artifact(self.id, str(picture))
            store.set_terminated(self.id)

    def interrupt(self) -> None:
        """Marks the run as killed; the same search continues it."""
        with registry_errors(self.project):
            client(self.project).set_terminated(self.id, "KILLED")


def open_search_run(
    recipe: str, search: str, metric: str, parameters: Mapping[str, str], project: Project, *, restart: bool = False
) -> SearchRun:
    """Returns the run of the search with this id, which an earlier command began, or a new one.

    Raises:
        RegistryError: MLflow's database cannot be read or written.
    """
    from mlflow.entities import Param

    store, name = client(project), experiment_name(recipe)
    with registry_errors(project):
        found = store.get_experiment_by_name(name)
        location = None if project.settings.tracking_uri else f"{artifact_root(project)}/searches/{recipe}"
        experiment = found.experiment_id if found else store.create_experiment(name, artifact_location=location)
        runs = [] if restart else store.search_runs([experiment], f"tags.`{SEARCH}` = '{search}'", max_results=1)
        if runs:
            store.update_run(runs[0].info.run_id, "RUNNING")
            return SearchRun(
                runs[0].info.run_id, experiment, metric, project, _logged(runs[0].info.run_id, experiment, project)
            )
        tags = {SEARCH: search}
        run = store.create_run(experiment, tags=tags, run_name=f"{recipe} {time.strftime('%Y-%m-%d %H:%M:%S')}")
        store.log_batch(run.info.run_id, params=[Param(name, value) for name, value in parameters.items()])
    return SearchRun(run.info.run_id, experiment, metric, project)


def _logged(parent: str, experiment: str, project: Project) -> set[int]:
    """Trials with a complete run; one that a kill has left half-written is removed."""
    store, found, page = client(project), set[int](), None
    while True:
        runs: Any = store.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", max_results=1000, page_token=page)
        for run in runs:
            if run.info.status == "RUNNING":
                store.delete_run(run.info.run_id)
            else:
                found.add(int(run.data.tags[TRIAL]))
        page = runs.token
        if not page:
            return found

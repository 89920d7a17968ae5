"""Publishes how a flow run ended where nothing else does: an error here; a kill is found by the watchdog, by the run's mark."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prefect.exceptions import Abort, ExternalSignal, Pause
from prefect.runtime import flow_run

from headrace.errors import Busy, HeadraceError, Interrupted, NotReleased
from headrace.events.publish import keep_silent, publish
from headrace.events.running import Run, marked, model_of
from headrace.project import Project, find_project

KNOWN = (NotReleased, Busy, Interrupted, Abort, KeyboardInterrupt)
"""Ends that are not failures: the journal has them, another run goes on, or a person has ended the run."""
_is_within_run: ContextVar[bool] = ContextVar("is_within_run", default=False)


@contextmanager
def end_published() -> Iterator[None]:
    """Marks the flow run as in progress, and publishes an error that ends it. Flows that it calls are parts of it."""
    run_id = flow_run.get_id()
    if not run_id or _is_within_run.get():
        yield
        return
    project = find_project()
    model = model_of(flow_run.get_parameters())
    run = Run(str(run_id), str(flow_run.get_flow_name()), model, os.getpid())
    token = _is_within_run.set(True)
    try:
        with marked(run, project, killed_by=ExternalSignal, closed_by=(Pause, Abort)):
            try:
                yield
            except BaseException as error:
                _publish_error(run, error, project)
                raise
    finally:
        _is_within_run.reset(token)


def _publish_error(run: Run, error: BaseException, project: Project) -> None:
    if isinstance(error, Pause | ExternalSignal):  # it goes on later; its process was ended, perhaps by a cancellation
        return
    if isinstance(error, KNOWN):
        keep_silent(project, run.key)
        return
    reason = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
    hint = {"hint": error.hint} if isinstance(error, HeadraceError) and error.hint else {}
    publish(project, "failed", run.model, {"run": run.flow, "flow_run": run.id, "reason": reason, **hint}, key=run.key)

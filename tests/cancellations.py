"""Cancels a run of a flow as a person does in Prefect's UI, while a test waits for its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from headrace.project import Project
from headrace.services import prefect


@contextmanager
def cancelled_once(has_begun: Callable[[], bool], project: Project) -> Iterator[None]:
    """Cancels the one run that is running as soon as `has_begun` says so; its end is waited for in the block."""

    def cancel() -> None:
        while not has_begun():
            time.sleep(0.05)
        running = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        (run,) = prefect.call(project, "POST", "flow_runs/filter", running)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(run["id"]), Cancelling())

    person = threading.Thread(target=cancel)
    person.start()
    yield
    person.join()

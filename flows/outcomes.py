"""The states in which runs end whose candidate is not released: no failures, each with a name and the reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import runtime
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.states import Cancelled, Completed

from headrace.errors import AwaitsApproval, ModelRefused, NotReleased, Rejected, RolledBack

P = ParamSpec("P")
R = TypeVar("R")

STATES: dict[type[NotReleased], tuple[str, Callable[..., State[Any]]]] = {
    AwaitsApproval: ("Awaiting approval", Completed),
    ModelRefused: ("Refused", Cancelled),
    Rejected: ("Rejected", Cancelled),
    RolledBack: ("Rolled back earlier", Cancelled),
}
"""What became of a candidate, to the name and the type of the run's state. One that fails during its roll-out is a failure."""
NAMES = [name for name, _ in STATES.values()]


def named_outcomes(body: Callable[P, R]) -> Callable[P, R | State[Any]]:
    """Lets the body of a flow end in one of `STATES` where it would fail with that error; `run_flow` raises it again."""

    @functools.wraps(body)
    def run(*args: P.args, **options: P.kwargs) -> R | State[Any]:
        try:
            found: R | State[Any] = body(*args, **options)
        except NotReleased as error:
            if type(error) not in STATES:
                raise
            name, state = STATES[type(error)]
            found = state(name=name, message=error.message, data=error)
        return _without_traceback(found) if isinstance(found, State) else found

    return run


def _without_traceback(state: State[Any]) -> State[Any]:
    """The state, for the process that a worker has started for a run: it raises the data of a cancelled state, and logs a
    traceback unless that is a signal of Prefect's own."""
    is_of_worker = runtime.deployment.id is not None and runtime.flow_run.parent_flow_run_id is None
    return state.model_copy(update={"data": Abort(state.message)}) if state.is_cancelled() and is_of_worker else state


def run_flow(flow: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
    """Runs a flow with `named_outcomes` and returns what it returns.

    Raises:
        NotReleased: why it has released nothing.
    """
    state = flow(*args, **options, return_state=True)
    found = state.result(raise_on_failure=state.name not in NAMES)
    if isinstance(found, NotReleased):
        raise found
    facts: dict[str, Any] = found
    return facts

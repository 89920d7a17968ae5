"""The order of the steps in the flow `release`. The steps themselves are replaced here; test_release.py runs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import State

import flows.release
from flows.outcomes import named_outcomes, run_flow
from headrace.errors import AwaitsApproval, ModelRefused, NotReleased, Rejected, RolledBack, RolloutAborted
from headrace.project import Project

UNTIL_DECISION = ["recover", "ingest", "validate", "prepare", "train", "export", "evaluate", "register", "judge"]


def run(monkeypatch: pytest.MonkeyPatch, stops: bool, waits: bool = False) -> list[str]:
    """The steps of one release of `tiny`, in order."""
    steps: list[str] = []

    def step(name: str) -> Any:
        def note(*_: Any) -> Any:
            steps.append(name)
            if name == "stop":
                raise ModelRefused("refused")
            return SimpleNamespace(stops=stops, waits=waits) if name == "judge" else {}

        return note

    for name in (*UNTIL_DECISION, "keep_production_serving", "ask", "stop", "package", "roll_out", "promote", "record"):
        monkeypatch.setattr(flows.release, name, step(name))
    end = flows.release.release.fn("tiny")
    return [*steps, str(end.name)] if isinstance(end, State) else steps


def test_a_candidate_that_passes_is_packaged_rolled_out_promoted_and_recorded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, stops=False) == [*UNTIL_DECISION, "package", "roll_out", "promote", "record"]


def test_a_refused_candidate_ends_the_release_after_the_decision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, stops=True) == [*UNTIL_DECISION, "keep_production_serving", "stop", "Refused"]


def test_people_are_asked_about_a_candidate_that_waits(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, stops=True, waits=True)[-4:] == ["keep_production_serving", "ask", "stop", "Refused"]


@pytest.mark.parametrize("error", [ModelRefused, AwaitsApproval, Rejected, RolledBack])
def test_a_candidate_that_is_not_released_is_no_failure_and_the_command_gets_the_error(error: type[NotReleased]) -> None:
    @named_outcomes
    def body() -> dict[str, Any]:
        raise error("why", hint="what to do")

    state = body()
    assert isinstance(state, State) and state.type.value in ("COMPLETED", "CANCELLED") and state.message == "why"
    with pytest.raises(error, match="what to do"):
        run_flow(lambda return_state: state)


def test_a_failed_roll_out_stays_a_failure() -> None:
    @named_outcomes
    def body() -> dict[str, Any]:
        raise RolloutAborted("errors")

    with pytest.raises(RolloutAborted):
        body()

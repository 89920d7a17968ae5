"""Approval: the form that a suspended run shows to a reviewer, and what follows from the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from prefect import task
from prefect.client.schemas.objects import State
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed
from pydantic import ConfigDict, Field

from headrace.errors import Busy
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import decision, journal, reviews
from headrace.release.decision import Decision
from headrace.release.lock import release_lock
from headrace.release.record import refused_after_approval
from headrace.services import approvals
from tasks.reporting import report, step
from tasks.settings import HOUR, PLAIN

POLL_SECONDS = 5.0


class ReviewForm(RunInput):
    """What a person fills in."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"decision": {"const": "reject"}}, "required": ["decision"]},
            "then": {"properties": {"reason": {"minLength": 1}}, "required": ["reason"]},
        }
    )
    decision: Literal["approve", "reject"]
    reason: str = Field(
        default="", max_length=reviews.MAX_REASON, description="One line for the journal. A rejection needs a reason."
    )


@task(name="ask for approval", timeout_seconds=HOUR, **PLAIN)
def ask(recipe: Recipe, project: Project) -> None:
    """Makes the suspended run of a candidate that waits, and ends those of older ones."""
    step("ask for approval", "in Prefect's form, the API or by headrace approve")
    approvals.ask(recipe.name, project, report)


def record_answer(project: Project) -> str | None:
    """Records what a person has answered in the form of this run; returns why that does not count."""
    problem = approvals.record_answer({"id": str(flow_run.get_id()), "parameters": flow_run.get_parameters()}, project)
    if problem:
        report(f"the answer was not taken: {problem}")
    return problem


def ended(model: str, version: str, content_sha256: str, project: Project) -> State[Any] | None:
    """The state in which this run ends because its candidate does not wait any more; None while it waits or is approved."""
    end = approvals.end_of(model, version, content_sha256, project)
    if end is None:
        return None
    name, message = end
    report(message)
    return (Completed if name == "Released" else Cancelled)(name=name, message=message)


def approved(model: str, project: Project) -> bool:
    """Whether enough people have approved the candidate."""
    candidate = reviews.candidate_of(journal.entries(project, model), project)
    return candidate is not None and candidate.state == "approved"


def form(model: str, project: Project, problem: str | None) -> type[ReviewForm]:
    """The form, below what a reviewer has to know about the candidate."""
    candidate = reviews.candidate_of(journal.entries(project, model), project)
    text = approvals.form_text(candidate, project, problem) if candidate is not None else ""
    return ReviewForm.with_initial_data(description=text)


def next_key(project: Project) -> str:
    """The key of the next suspension of this run."""
    count, _ = approvals.answer_of(str(flow_run.get_id()), project)
    return approvals.pause_key(count + 1)


@contextmanager
def lock_once_free(model: str, project: Project) -> Iterator[None]:
    """Holds the right to release a model, as soon as no other process holds it."""
    waits = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(release_lock(model, project))
                break
            except Busy as error:
                if not waits:
                    report(error.message)
                waits = True
            time.sleep(POLL_SECONDS)
        yield


def take(recipe: Recipe, version: str, project: Project) -> Decision:
    """The decision to release a version, as people and the gate have made it.

    Raises:
        ModelRefused: it does not pass the gate any more, because the recipe or production has changed.
    """
    found = decision.take_approved(recipe, version, project)
    if found.stops:
        raise refused_after_approval(found)
    return found

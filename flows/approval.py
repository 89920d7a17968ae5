"""The review of a candidate by a person: a suspended run with a form in Prefect's UI, whose process ends until it is answered.

All that it knows is in its parameters, in the journal and in Prefect's database: it goes on after days, after a restart and
after an upgrade. An approval by `headrace approve` or the API continues it in the same way.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run

from flows.cancellation import supervised_run
from flows.outcomes import named_outcomes, run_flow
from headrace.project import find_project
from headrace.recipe.recipe import load_recipe
from tasks.approval import approved, ended, form, lock_once_free, next_key, record_answer, take
from tasks.serving import package, promote, record, recover, roll_out


@flow(name="approval", flow_run_name="approve-{model}@{version}")
@named_outcomes
def approval(model: str, version: str, content_sha256: str) -> dict[str, Any] | State[Any]:
    """Asks people to approve or reject a version that passed the gate, and releases it once enough of them have approved."""
    project = find_project()
    with supervised_run():
        problem = record_answer(project)
        if not approved(model, project):
            if (end := ended(model, version, content_sha256, project)) is not None:
                return end
            suspend_flow_run(wait_for_input=form(model, project, problem), key=next_key(project))
        with lock_once_free(model, project):  # another process may have released this very candidate
            end = ended(model, version, content_sha256, project)
            return end if end is not None else run_flow(release_approved, model, version)


@flow(name="release approved", flow_run_name="{recipe_name}")
@named_outcomes
def release_approved(recipe_name: str, version: str) -> dict[str, Any]:
    """Releases a version that people have approved: exactly its files, whatever was trained or changed since. Its caller holds
    the lock of releases."""
    project = find_project()
    recipe = load_recipe(recipe_name, project)
    with supervised_run():
        recover(recipe, project)
        decision = take(recipe, version, project)
        packaged = package(decision, project)
        roll_out(recipe, decision, packaged, project)
        promote(decision, project)
        return record(recipe, decision, packaged, project)

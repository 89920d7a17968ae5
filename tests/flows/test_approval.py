"""The flow `approval` on a real Prefect server: the form, answers that are not taken, two people, and how a run ends."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from filelock import FileLock
from prefect import flow, get_client
from prefect.context import refresh_global_settings_context
from prefect.engine import handle_engine_signals
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow

from flows import outcomes
from flows.approval import approval
from headrace.errors import DataError
from headrace.events import outbox
from headrace.events.running import Run, dead_runs, folder, marked
from headrace.files import read_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.release import description, journal, reviews, terms
from headrace.release.description import describe
from headrace.services import approvals, prefect, prefect_api, probes
from headrace.services.events import deliver
from headrace.services.prefect import prefect_environment
from headrace.settings import Settings
from headrace.tracking import registry
from headrace.tracking.registry import Version
from tests.ports import free_port
from tests.release.candidates import LENIENT, decide, events, new_recipe, register, register_other_bytes, reviewer
from tests.services.prefect_server import prefect_server


@pytest.fixture(scope="module")
def server(built: Project) -> Iterator[Project]:
    """The built project with a Prefect server."""
    with prefect_server(built.root) as project:
        yield project


@pytest.fixture
def served(server: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The same, for flows in this process."""
    for name, value in prefect_environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_ROOT", str(server.root))
    monkeypatch.setenv("HEADRACE_PREFECT_PORT", str(server.settings.prefect_port))
    refresh_global_settings_context()
    yield server
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    refresh_global_settings_context()


def asked(project: Project, **gate: Any) -> tuple[Recipe, Version]:
    """A recipe with a champion, whose second version waits and is asked about."""
    recipe = new_recipe(project, approval="manual", beat_champion=LENIENT, **gate)
    version = register(recipe, project)
    decide(recipe, version, project)
    describe(recipe, decide(recipe, version, project), project)
    ask(recipe, project)
    return recipe, version


def ask(recipe: Recipe, project: Project) -> list[str]:
    lines: list[str] = []
    approvals.ask(recipe.name, project, lines.append)
    return lines


def runs_of(version: Version, project: Project) -> list[dict[str, Any]]:
    query = {"flow_runs": {"tags": {"all_": [approvals.TAG, version.name]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found: list[dict[str, Any]] = prefect.call(project, "POST", "flow_runs/filter", query)
    return found


def states_of(version: Version, project: Project) -> list[str]:
    return [run["state"]["name"] for run in runs_of(version, project)]


def start(version: Version, project: Project) -> None:
    """Does what the worker does with the run that is to start or to go on."""
    (run,) = [run for run in runs_of(version, project) if run["state"]["type"] == "SCHEDULED"]
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(run["id"])
    try:
        run_flow(approval, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
    except Pause:
        return


def start_as_a_worker(version: Version, project: Project) -> None:
    """Starts the run as `start`, and ends as the process that a worker starts for it."""
    (run,) = [run for run in runs_of(version, project) if run["state"]["type"] == "SCHEDULED"]
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(run["id"])
    with pytest.raises(SystemExit) as ended, handle_engine_signals(flow_run.id):
        run_flow(approval, flow_run=flow_run, parameters=flow_run.parameters, error_logger=logging.getLogger("worker"))
    assert ended.value.code == 0


def answer(version: Version, project: Project, **fields: str) -> Any:
    """Submits the form, as Prefect's page does; returns the state of the run, and the reason where it was refused."""
    (run,) = [run for run in runs_of(version, project) if run["state"]["type"] == "PAUSED"]
    done = prefect.call(project, "POST", f"flow_runs/{run['id']}/resume", {"run_input": fields})
    return done["status"], done["details"].get("reason")


def form_text(version: Version, project: Project) -> str:
    (run,) = runs_of(version, project)
    count = len(run["empirical_policy"]["pause_keys"])
    (found,) = prefect.call(
        project, "POST", f"flow_runs/{run['id']}/input/filter", {"prefix": f"suspended-review-{count}-description"}
    )
    return str(found["value"])


def test_a_rejection_without_a_reason_is_refused_and_with_one_it_is_recorded_as_the_operators(served: Project) -> None:
    recipe, version = asked(served)
    start(version, served)
    assert states_of(version, served) == ["Suspended"]
    shown = form_text(version, served)
    assert f"**{version.name}** passed the gate" in shown and f"/#/models/{recipe.name}/versions/1" in shown
    for fields in ({"decision": "reject"}, {"decision": "reject", "reason": ""}, {"decision": "maybe"}, {}):
        status, reason = answer(version, served, **fields)
        assert status == "REJECT" and "Validation failed" in reason, fields
    assert answer(version, served, decision="reject", reason=" ")[0] == "ACCEPT"
    start(version, served)
    assert "Your last answer was not taken: the reason is one line" in form_text(version, served)
    assert [event for event, _ in events(recipe, served)] == ["awaiting-approval"]
    assert answer(version, served, decision="reject", reason="too many false alarms")[0] == "ACCEPT"
    run = runs_of(version, served)[0]
    again = prefect.call(served, "POST", f"flow_runs/{run['id']}/resume", {"run_input": {"decision": "approve"}})
    assert again["status"] == "ABORT", "a form that is submitted twice"
    start(version, served)
    entry = journal.entries(served, recipe.name)[-1]
    assert (entry.event, entry.facts["role"], entry.facts["via"]) == ("rejected", "operator", "Prefect's form")
    (run,) = runs_of(version, served)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Rejected")
    assert "too many false alarms" in run["state"]["message"]
    assert "**Review:** rejected by " in (description.stored(recipe.name, "1", served) or "")


def test_two_people_approve_in_two_places_and_the_form_says_who_has(served: Project) -> None:
    recipe, version = asked(served, approvers=2)
    start(version, served)
    assert "0 of 2 approvals" in form_text(version, served)
    answer(version, served, decision="approve", reason="better")
    start(version, served)
    assert states_of(version, served) == ["Suspended"]
    assert "1 of 2 approvals: by " in form_text(version, served)
    answer(version, served, decision="approve", reason="once more")
    start(version, served)
    assert "the same person counts once: 1 of 2 approvals" in form_text(version, served)
    assert "1 of 2 approvals" in (description.stored(recipe.name, "1", served) or "")
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    after = approvals.follow_up(recipe.name, "1", served)
    assert (after["state"], after["approvals"]) == ("approved", 2) and "goes on" in after["next"]
    assert states_of(version, served) == ["Resuming"]
    approvals.synchronise(served, lambda line: None)
    assert states_of(version, served) == ["Resuming"], "once"


def test_an_approval_by_another_person_shows_in_the_open_form(served: Project) -> None:
    recipe, version = asked(served, approvers=2)
    start(version, served)
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    assert approvals.follow_up(recipe.name, "1", served)["next"] == "1 of 2 approvals: another person has to approve it"
    assert "1 of 2 approvals: by ada" in form_text(version, served)
    assert states_of(version, served) == ["Suspended"]


def test_a_newer_candidate_ends_the_run_of_the_older_one_and_each_is_asked_about_once(served: Project) -> None:
    recipe, version = asked(served)
    start(version, served)
    assert ask(recipe, served) == [] and states_of(version, served) == ["Suspended"]
    newer = register_other_bytes(recipe, served)
    decide(recipe, newer, served)
    ask(recipe, served)
    (run,) = runs_of(version, served)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Superseded")
    assert f"superseded by {newer.name}" in run["state"]["message"]
    approvals.synchronise(served, lambda line: None)
    assert states_of(newer, served) == ["Scheduled"]


def test_a_run_that_a_person_cancelled_is_made_again_by_the_next_release_alone(served: Project) -> None:
    recipe, version = asked(served)
    start(version, served)
    (run,) = runs_of(version, served)
    body = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
    prefect.call(served, "POST", f"flow_runs/{run['id']}/set_state", body)
    approvals.synchronise(served, lambda line: None)
    assert states_of(version, served) == ["Cancelled"]
    assert version.name in ask(recipe, served)[0]
    assert sorted(states_of(version, served)) == ["Cancelled", "Scheduled"]


def test_reminders_go_out_once_each_and_an_expired_candidate_ends(served: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def published(name: str) -> int:
        with outbox.opened(served) as connection:
            found = connection.execute("select count(*) from event where name = ? and model = ?", (name, recipe.name))
            return int(found.fetchone()[0])

    recipe, version = asked(served, remind="1d", expires="7d")
    start(version, served)
    real, began, counts = time.time, time.time(), []
    for days in (0.5, 1.1, 1.2, 4.1, 4.2, 1.5):  # the clock is set back at the end
        monkeypatch.setattr(time, "time", lambda passed=days: began + passed * 86400)
        approvals.look_after(served, lambda line: None)
        counts.append(published("approval-reminder"))
    assert counts == [0, 1, 1, 2, 2, 2]
    monkeypatch.setattr(time, "time", lambda: began + 7.1 * 86400)
    for _ in range(2):
        approvals.look_after(served, lambda line: None)
    assert [event for event, _ in events(recipe, served)] == ["awaiting-approval", "expired"]
    (run,) = runs_of(version, served)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Expired")
    assert "expired" in (description.stored(recipe.name, "1", served) or "")
    monkeypatch.setattr(time, "time", real)
    decide(recipe, version, served)
    ask(recipe, served)
    assert sorted(states_of(version, served)) == ["Expired", "Scheduled"]


def test_what_was_changed_after_the_judgement_is_not_taken_in_the_form(served: Project) -> None:
    recipe, version = asked(served)
    start(version, served)
    graph = registry.get(version.name, served).folder / "model.onnx"
    original = graph.read_bytes()
    graph.write_bytes(original + b"\0")
    answer(version, served, decision="approve")
    start(version, served)
    assert "Your last answer was not taken: " in form_text(version, served)
    assert [event for event, _ in events(recipe, served)] == ["awaiting-approval"]
    graph.write_bytes(original)


def test_a_run_that_ends_without_a_release_logs_no_traceback(served: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where people have approved what the gate refuses by now, nor where the candidate was superseded meanwhile."""
    recipe, version = asked(served)
    start(version, served)
    answer(version, served, decision="approve")
    path = served.recipes / f"{recipe.name}.yaml"
    path.write_text(path.read_text().replace(">= 0.1", ">= 0.999"))
    start_as_a_worker(version, served)
    (run,) = runs_of(version, served)
    assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Refused")
    assert "recipe or production have changed since it was judged" in run["state"]["message"]
    assert [event for event, _ in events(recipe, served)][-2:] == ["approved", "refused"]

    recipe, version = asked(served)
    start(version, served)
    answer(version, served, decision="reject", reason="too slow")
    start_as_a_worker(version, served)
    assert states_of(version, served) == ["Rejected"]
    assert "Traceback" not in caplog.text and not [one for one in caplog.records if one.exc_info]


def test_an_error_of_a_flow_reaches_its_caller_as_it_is(served: Project) -> None:
    @flow
    def broken() -> None:
        raise DataError("no rows", hint="add some")

    with pytest.raises(DataError, match="no rows") as caught:
        outcomes.run_flow(broken)
    assert caught.value.hint == "add some"


def test_without_prefect_the_review_stands_and_the_command_says_what_goes_on(built: Project) -> None:
    offline = built.using(Settings(prefect_port=free_port()))
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    decide(recipe, version, built)
    assert f"headrace approve {version.name} approves it all the same" in ask(recipe, offline)[0]
    reviews.review(version.name, "approved", reviewer(built, "ada"), "", built)
    assert f"headrace run {recipe.name}; or headrace up" in approvals.follow_up(recipe.name, "1", offline)["next"]


def test_an_approved_candidate_without_a_run_gets_one(served: Project) -> None:
    """Prefect was down when it was approved."""
    recipe = new_recipe(served, approval="manual")
    version = register(recipe, served)
    decide(recipe, version, served)
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    for _ in range(2):
        approvals.look_after(served, lambda line: None)
    assert states_of(version, served) == ["Scheduled"]
    answered = prefect_api.call(served, f"/flow_runs/{runs_of(version, served)[0]['id']}")
    assert answered is not None and answered.json()["name"] == f"approve-{version.name}"
    released_elsewhere = decide(recipe, version, served)
    assert released_elsewhere.result == "promote"


def test_the_watchdog_knows_what_waits_from_the_lines_of_the_journal_alone(built: Project) -> None:
    assert probes.DECIDING == terms.DECIDING
    recipe = new_recipe(built, approval="manual")
    version = register(recipe, built)
    decide(recipe, version, built)
    assert recipe.name in (probes.waiting_models(built) or [])
    journal.record(built, "expired", recipe.name, "1", {"by": "headrace"})
    assert recipe.name not in (probes.waiting_models(built) or [])
    assert probes.waiting_models(Project(built.root / "elsewhere")) is None


def test_a_run_that_was_killed_is_made_again_but_not_for_ever(served: Project) -> None:
    recipe, version = asked(served)
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    for killed in range(approvals.MAX_KILLED + 1):
        (run,) = [run for run in runs_of(version, served) if run["state"]["type"] == "SCHEDULED"]
        body = {"state": {"type": "RUNNING", "name": "Running"}, "force": True}
        prefect.call(served, "POST", f"flow_runs/{run['id']}/set_state", body)
        leave_mark(Run(run["id"], "approval", recipe.name), served)
        deliver.look_for_dead_runs(served)
        is_last = killed == approvals.MAX_KILLED
        wanted = ["Crashed"] * (killed + 1) + ([] if is_last else ["Scheduled"])
        assert sorted(states_of(version, served)) == wanted and dead_runs(served) == []
    assert version.name in ask(recipe, served)[0], "a release asks again"


def leave_mark(run: Run, project: Project) -> None:
    """What the process of a run leaves that is killed."""
    with suppress(ZeroDivisionError), marked(run, project, killed_by=ZeroDivisionError):
        raise ZeroDivisionError


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_run_that_was_killed_while_it_started_is_made_again(
    state: str, served: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had no mark yet."""
    _, version = asked(served)
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    (run,) = runs_of(version, served)
    body = {"state": {"type": state, "name": state.capitalize()}, "force": True}
    prefect.call(served, "POST", f"flow_runs/{run['id']}/set_state", body)
    approvals.synchronise(served, lambda line: None)
    assert states_of(version, served) == [state.capitalize()]
    began = time.time()
    monkeypatch.setattr(time, "time", lambda: began + approvals.START_SECONDS + 1)
    approvals.synchronise(served, lambda line: None)
    assert sorted(states_of(version, served)) == ["Crashed", "Scheduled"]


def test_a_run_that_was_killed_once_it_was_suspended_waits_on(served: Project) -> None:
    recipe, version = asked(served)
    start(version, served)
    leave_mark(Run(runs_of(version, served)[0]["id"], "approval", recipe.name), served)
    deliver.look_for_dead_runs(served)
    assert states_of(version, served) == ["Suspended"] and dead_runs(served) == []
    with outbox.opened(served) as connection:
        assert not connection.execute("select * from event where name = 'crashed' and model = ?", (recipe.name,)).fetchall()


def test_a_run_is_marked_before_it_begins_to_release(served: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its end is found when it is killed while another release keeps it waiting."""
    monkeypatch.setattr("tasks.approval.POLL_SECONDS", 0.1)
    recipe, version = asked(served)
    reviews.review(version.name, "approved", reviewer(served, "ada"), "", served)
    served.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(served.locks / f"release-{recipe.name}.lock", thread_local=False)
    lock.acquire()
    found: list[dict[str, Any]] = []

    def in_progress() -> list[dict[str, Any]]:
        """Marks of earlier runs of this process stay until it ends."""
        return [mark for path in folder(served).glob("*.json") if not (mark := read_json(path))["end"]]

    def reject_once_marked() -> None:
        while not (marks := in_progress()):
            time.sleep(0.05)
        found.extend(marks)
        reviews.review(version.name, "rejected", reviewer(served, "ada"), "no", served)
        lock.release()

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(reject_once_marked)
        start(version, served)
        watched.result()
    assert [(mark["flow"], mark["model"]) for mark in found] == [("approval", recipe.name)]
    assert states_of(version, served) == ["Rejected"] and not in_progress()

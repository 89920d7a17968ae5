"""`prefect.yaml` is what runs, on a real Prefect server: what is gone there is gone on the server, and pauses survive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services import prefect
from headrace.services.prefect_checks import poll_problem, unscheduled
from headrace.services.prefect_deployments import register_deployments
from headrace.services.prefect_file import Entry, keep_pauses, read_entry
from tests.projects import TINY_TABLE
from tests.services.prefect_server import prefect_server

FLOW = "from prefect import flow\n\n@flow\ndef nightly(recipe_name: str = 'toy'):\n    pass\n"
WEEKLY = '{cron: "30 5 * * MON", timezone: Europe/Berlin, parameters: {recipe_name: toy}}'
MONTHLY = '{cron: "0 3 1 * *", timezone: UTC}'
OFF = '{cron: "5 5 * * *", active: false}'
BY_PERSON = "is paused by a person; resume it in Prefect's UI: headrace open prefect"
LOST = '{slug: lost, cron: "7 7 * * *", parameters: {recipe_name: lost}}'
NAMED = "{slug: hourly, interval: 3600, parameters: {recipe_name: toy}}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("clone")
    (root / "recipes").mkdir()
    (root / "recipes" / "toy.yaml").write_text("")
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "flow.py").write_text(FLOW)
    with prefect_server(root) as found:
        yield found


def deployments(project: Project) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in prefect.call(project, "POST", "deployments/filter", {})}


def schedules(project: Project, name: str) -> dict[str, bool]:
    """Whether each schedule of a deployment is active, by its cron or interval."""
    found = deployments(project)[name]["schedules"]
    return {str(one["schedule"].get("cron") or one["schedule"].get("interval")): one["active"] for one in found}


def parameters(project: Project, name: str) -> list[dict[str, Any]]:
    return [one["parameters"] for one in deployments(project)[name]["schedules"]]


def write(project: Project, *entries: str, comment: str = "") -> None:
    listed = "\n".join(f"  - {{entrypoint: flow.py:nightly, work_pool: {{name: headrace}}, {entry}}}" for entry in entries)
    (project.root / "prefect.yaml").write_text(f"# {comment}\nname: test\ndeployments:\n{listed or '  []'}\n")


def up(project: Project) -> list[str]:
    """Registers the deployments and returns the lines that it reports."""
    lines: list[str] = []
    register_deployments(project, lines.append)
    return lines


def set_active(project: Project, name: str, cron: str, active: bool) -> None:
    """Pauses or resumes a schedule as the UI does."""
    found = deployments(project)[name]
    schedule = next(one for one in found["schedules"] if one["schedule"].get("cron") == cron)
    prefect.call(project, "PATCH", f"deployments/{found['id']}/schedules/{schedule['id']}", {"active": active})


def test_the_server_has_what_the_file_has_and_pauses_of_persons_survive(project: Project) -> None:
    """One test, since each change of the file starts `prefect deploy`."""
    flow_id = prefect.call(project, "POST", "flows/", {"name": "own"})["id"]
    own = {"name": "own", "flow_id": flow_id, "entrypoint": "own.py:own", "work_pool_name": "headrace"}
    prefect.call(project, "POST", "deployments/", own)
    write(
        project,
        f"name: emptied, schedules: [{WEEKLY}]",
        f"name: without, schedules: [{LOST}, {NAMED}], parameters: {{recipe_name: missing}}",
        f"name: fewer, schedules: [{WEEKLY}, {MONTHLY}, {NAMED}, {OFF}]",
        f"name: old, schedules: [{WEEKLY}]",
        "name: waiting",
        "name: paused, paused: true",
    )
    lines = up(project)
    assert lines[:6] == [f"deployment {name} added" for name in ("emptied", "without", "fewer", "old", "waiting", "paused")]
    assert "deployment own is not in prefect.yaml and stays" in lines[6]
    off = "deployment fewer: schedule cron 5 5 * * * is paused (active: false in prefect.yaml)"
    missing = "deployment without: the recipe 'missing' does not exist, so its runs will fail; correct it in prefect.yaml"
    lost = missing.replace("'missing'", "'lost'")
    unchanged = [missing, lost, off, "deployment paused is paused (paused: true in prefect.yaml)"]
    assert lines[7:] == unchanged
    assert schedules(project, "fewer") == {"30 5 * * MON": True, "0 3 1 * *": True, "3600.0": True, "5 5 * * *": False}

    # Prefect drops the parameters of a schedule that is paused in the UI: they come back.
    set_active(project, "old", "30 5 * * MON", False)
    assert parameters(project, "old") == [{}]
    by_person = f"deployment old: schedule cron 30 5 * * MON {BY_PERSON}"
    assert up(project) == [missing, lost, off, by_person, unchanged[-1]]
    assert parameters(project, "old") == [{"recipe_name": "toy"}]

    # A person pauses a schedule and a deployment, and resumes a schedule. `up` says so, and changes nothing.
    set_active(project, "fewer", "0 3 1 * *", False)
    set_active(project, "fewer", "5 5 * * *", True)
    prefect.call(project, "POST", f"deployments/{deployments(project)['waiting']['id']}/pause_deployment")
    paused = [f"deployment {name} {BY_PERSON}" for name in ("fewer: schedule cron 0 3 1 * *", "waiting")]
    assert up(project) == [missing, lost, paused[0], by_person, paused[1], unchanged[-1]]

    # The file changes everywhere. A person has deleted a deployment that stays in it, and added a schedule.
    prefect.call(project, "DELETE", f"deployments/{deployments(project)['paused']['id']}")
    path = f"deployments/{deployments(project)['emptied']['id']}/schedules"
    prefect.call(project, "POST", path, [{"schedule": {"cron": "1 1 1 1 *"}}])
    monthly, named = MONTHLY.replace("UTC", "Europe/Berlin"), NAMED.replace(", parameters: {recipe_name: toy}", "")
    write(
        project,
        "name: emptied, schedules: []",
        "name: without",
        f"name: fewer, schedules: [{OFF}, {named}, {monthly}]",
        f"name: new, schedules: [{WEEKLY}]",
        "name: waiting, description: changed",
        "name: paused, paused: true",
    )
    lines = up(project)
    assert sorted(lines) == sorted(
        [
            *(f"deployment {name} changed" for name in ("emptied", "without", "fewer", "waiting")),
            *(f"deployment {name} added" for name in ("new", "paused")),
            "deployment old removed: neither prefect.yaml nor a recipe has it",
            *(f"deployment {name}: schedule cron 30 5 * * MON removed" for name in ("emptied", "fewer")),
            "deployment emptied: schedule cron 1 1 1 1 * removed",
            *(f"deployment without: schedule {timing} removed" for timing in ("interval 3600", "cron 7 7 * * *")),
            *paused,
            unchanged[-1],
        ]
    )
    assert deployments(project).keys() == {"own", "emptied", "without", "fewer", "new", "waiting", "paused"}
    assert schedules(project, "emptied") == schedules(project, "without") == {}
    assert schedules(project, "fewer") == {"0 3 1 * *": False, "3600.0": True, "5 5 * * *": True}
    assert {name for name, found in deployments(project).items() if found["paused"]} == {"waiting", "paused"}
    assert parameters(project, "fewer") == [{}, {}, {}]
    assert up(project) == [*paused, unchanged[-1]]


def test_an_active_schedule_without_a_run_is_noticed(project: Project) -> None:
    """As when the scheduler fails; here it is off."""
    own = deployments(project)["own"]
    assert "own" not in unscheduled(project, 0.0)
    path = f"deployments/{own['id']}/schedules"
    yearly = {"schedule": {"cron": "1 1 1 1 *"}}  # the scheduler does not look so far ahead
    prefect.call(project, "POST", path, [{"schedule": {"cron": "30 5 * * MON"}}, yearly])
    assert unscheduled(project, 3600.0) == []
    assert "own" in unscheduled(project, 0.0)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": tomorrow}}
    prefect.call(project, "POST", f"deployments/{own['id']}/create_flow_run", {"state": later})
    assert "own" not in unscheduled(project, 0.0)


def test_a_worker_that_does_not_poll_is_noticed(project: Project) -> None:
    assert poll_problem(project) == "it has never asked for runs"
    prefect.call(project, "POST", f"work_pools/{prefect.WORK_POOL}/get_scheduled_flow_runs", {})
    deadline = time.monotonic() + 60  # the server notes it in the background
    while poll_problem(project) is not None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert poll_problem(project) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("name: test", "expected a mapping with a list of deployments"),
        ("deployments: [", "no valid YAML"),
        ("deployments: [{name: a}]", "needs a name and an entrypoint"),
        ("deployments: [{name: a, entrypoint: f.py:f, schedules: [daily]}]", "expected a list of schedules"),
        ("deployments: [{name: a, entrypoint: f.py:f}, {name: a, entrypoint: f.py:f}]", "two deployments have the name 'a'"),
        ("deployments: [{name: a, entrypoint: gone.py:f, work_pool: {name: headrace}}]", "Prefect refuses the deployments"),
        (None, "the file is missing"),
    ],
)
def test_a_file_that_cannot_be_deployed_removes_nothing(text: str | None, message: str, project: Project) -> None:
    before = deployments(project)
    path = project.root / "prefect.yaml"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    with pytest.raises(ServiceError, match=message) as caught:
        up(project)
    assert "prefect.yaml" in str(caught.value.where)
    assert deployments(project) == before


def test_a_file_without_deployments_removes_those_of_the_file_alone(project: Project) -> None:
    before = deployments(project)
    write(project)
    assert up(project) == [
        f"deployment {name} removed: neither prefect.yaml nor a recipe has it" for name in before if name != "own"
    ]
    assert deployments(project).keys() == {"own"} & before.keys()


def test_schedules_of_recipes_have_deployments_whose_pauses_survive(project: Project) -> None:
    (project.root / "flows").mkdir()
    for flow in ("monitor", "refresh"):
        (project.root / "flows" / f"{flow}.py").write_text(FLOW.replace("nightly", flow))
    recipe = project.recipes / "tiny.yaml"
    incremental = TINY_TABLE.replace("  target: kind\n", "  target: kind\n  incremental: {column: length, first: 1}\n")
    scheduled = incremental + "monitor: {every: 90m}\nrefresh: {cron: '0 3 1 * *', timezone: Europe/Berlin}\n"
    recipe.write_text(scheduled)
    (project.recipes / "broken.yaml").write_text("monitor: [\n")
    write(project)
    lines = up(project)
    assert {"deployment monitor-tiny added", "deployment refresh-tiny added"} <= set(lines)
    assert any(line.startswith("deployment monitor-broken is not made, because its recipe cannot be read") for line in lines)
    assert schedules(project, "monitor-tiny") == {"5400.0": True} and schedules(project, "refresh-tiny") == {"0 3 1 * *": True}
    assert deployments(project)["refresh-tiny"]["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    assert deployments(project)["monitor-tiny"]["parameters"] == {"recipe_name": "tiny"}
    (project.recipes / "broken.yaml").unlink()
    set_active(project, "refresh-tiny", "0 3 1 * *", False)
    recipe.write_text(scheduled.replace("Europe/Berlin", "UTC").replace("monitor: {every: 90m}\n", ""))
    paused = f"deployment refresh-tiny: schedule cron 0 3 1 * * {BY_PERSON}"
    gone = "removed: neither prefect.yaml nor a recipe has it"
    assert up(project) == ["deployment refresh-tiny changed", f"deployment monitor-tiny {gone}", paused]
    assert deployments(project)["refresh-tiny"]["schedules"][0]["schedule"]["timezone"] == "UTC"
    assert up(project) == [paused]
    recipe.write_text(incremental + "refresh: {every: 1d}\n")
    up(project)
    assert schedules(project, "refresh-tiny").keys() == {"86400.0"}
    recipe.write_text(incremental)
    assert up(project) == [f"deployment refresh-tiny {gone}"]


def test_pauses_when_the_file_changes_or_its_last_state_is_unknown() -> None:
    def entry(active: bool, paused: bool, cron: str = "0 3 * * *") -> Entry:
        fields = {"name": "a", "entrypoint": "f.py:f", "paused": paused, "schedules": [{"cron": cron, "active": active}]}
        return read_entry(fields, "")

    def on_server(active: bool, paused: bool) -> dict[str, Any]:
        return {"paused": paused, "schedules": [{"slug": None, "schedule": {"cron": "0 3 * * *"}, "active": active}]}

    def merged(file: Entry, before: Entry | None, server: dict[str, Any] | None) -> tuple[bool, bool]:
        found = keep_pauses(file, before, server)
        return found.schedules[0].active, found.paused

    on, off = entry(True, False), entry(False, True)
    assert merged(off, None, None) == (False, True)
    assert merged(on, on, on_server(False, True)) == (False, True)
    assert merged(off, off, on_server(True, False)) == (True, False)
    assert merged(off, on, on_server(True, False)) == (False, True)
    assert merged(on, off, on_server(False, True)) == (True, False)
    # Unknown: what is paused on either side stays paused.
    assert merged(on, None, on_server(False, True)) == merged(off, None, on_server(True, False)) == (False, True)
    assert merged(on, None, on_server(True, False)) == (True, False)
    # The only schedule runs at another time: still the same one.
    assert merged(entry(True, False, "0 4 * * *"), on, on_server(False, False)) == (False, False)

"""`headrace status`: what should run and does not work is named, with the command that resolves it."""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from headrace.cli.inspect import status
from headrace.cli.summary import print_status
from headrace.project import Project
from headrace.services import mlflow
from headrace.services.prefect_checks import server_errors
from headrace.services.service import READY_SECONDS, Server
from headrace.services.status import failing
from headrace.serving.replicas.programs import program_path
from headrace.serving.replicas.supervisor import Program, ProgramState
from headrace.serving.replicas.supervisor_rpc import ProgramStateName
from headrace.settings import Settings

LOG = """
12:00:00.000 | ERROR   | prefect.server - of an earlier start
Headrace starts the server of prefect on port 4200

12:01:00.000 | WARNING | prefect.server - a warning
12:02:00.000 | ERROR   | docket.worker - schedule_recent_deployments failed
Traceback (most recent call last):
  File "deployments.py", line 1009, in _insert_scheduled_flow_runs
    raise
sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def test_what_was_not_started_or_was_stopped_on_purpose_is_no_failure(project: Project) -> None:
    done = CliRunner().invoke(status, ["--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {(one["state"], one["problem"], one["hint"]) for one in found["services"]} == {("stopped", None, None)}


def test_a_service_that_should_run_and_does_not_is_a_failure(project: Project) -> None:
    """As after all processes were killed: supervisord's files are still there."""
    path = program_path(project, "prefect-worker")
    path.parent.mkdir(parents=True)
    path.write_text("")
    done = CliRunner().invoke(status, ["--json"])
    assert done.exit_code == 5
    found = json.loads(done.stdout)
    assert failing(found) == ["prefect-worker"]
    worker = next(one for one in found["services"] if one["name"] == "prefect-worker")
    assert (worker["state"], worker["problem"], worker["hint"]) == ("stopped", "it does not run", "headrace up")
    printed = CliRunner().invoke(status, [])
    assert printed.exit_code == 5 and "prefect-worker: it does not run\n  hint: headrace up" in printed.stdout


@pytest.mark.parametrize(
    ("program_state", "seconds", "is_ready", "problem", "expected"),
    [
        ("running", 9.0, True, None, ("ready", None)),
        ("running", 9.0, False, None, ("starting", None)),
        ("running", READY_SECONDS + 5, False, None, ("degraded", "it does not answer, 125 s after its start")),
        ("running", 9.0, True, "no schedule runs", ("degraded", "no schedule runs")),
        ("failed", 9.0, False, None, ("failed", "it ended: exited too quickly")),
        ("stopped", 9.0, False, None, ("stopped", None)),
    ],
)
def test_the_state_of_a_service(
    program_state: ProgramStateName,
    seconds: float,
    is_ready: bool,
    problem: str | None,
    expected: tuple[str, str | None],
) -> None:
    server = Server(Program("one", ["true"]), "", lambda: is_ready, lambda: problem, lambda: "2 errors in its log")
    programs = {"one": ProgramState("one", program_state, 1, time.time() - seconds, "exited too quickly")}
    found = server.state(programs, in_depth=True)
    note = "2 errors in its log" if expected == ("ready", None) else None
    assert (found.state, found.problem) == (expected[0], expected[1] or note)
    assert (found.hint is None) == (found.problem is None)
    if expected == ("ready", None):
        assert failing({"services": [found.to_dict()], "models": []}) == []
        assert server.state(programs).problem is None


def test_a_model_whose_replicas_do_not_answer_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    model = {
        "name": "digits", "version": "3", "alias": None, "replicas": 2, "ready": 1, "address": "", "canary": None,
        "shadow": None, "predecessor": None, "problem": "1 of 2 replicas do not answer", "hint": "headrace logs digits",
        "deleted_in_mlflow": None, "champion_in_mlflow": None,
    }  # fmt: skip
    watchdog = {"name": "watchdog", "state": "ready", "address": "", "problem": None, "hint": None}
    found = {"services": [watchdog], "models": [model], "candidates": [], "receivers": []}
    assert failing(found) == ["digits"]
    print_status(found)
    assert "digits: 1 of 2 replicas do not answer\n  hint: headrace logs digits" in capsys.readouterr().out


def test_errors_in_the_servers_log_are_counted_since_its_start(tmp_path: Path) -> None:
    path = tmp_path / "prefect-server.log"
    assert server_errors(path) is None
    path.write_text(LOG)
    last = "sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement"
    assert server_errors(path) == f"1 error(s) in its log since its start; the last: {last}"
    locked = "12:03:00.000 | ERROR   | docket - late runs\nTraceback\nsqlite3.OperationalError: database is locked\n"
    path.write_text(LOG + locked)
    assert server_errors(path) == f"1 error(s) in its log since its start; the last: {last}", "Prefect repeats it"
    path.write_text(LOG + locked * 5)
    repeated = "6 error(s) in its log since its start; the last: sqlite3.OperationalError: database is locked"
    assert server_errors(path) == repeated
    path.write_text(LOG + "Headrace starts the server of prefect on port 4200\n")
    assert server_errors(path) is None


def test_mlflow_that_answers_without_its_database_is_a_failure_shown_by_a_stand_in(project: Project) -> None:
    class WithoutDatabase(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"database disk image is malformed")

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), WithoutDatabase)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = mlflow.server(project.using(Settings(mlflow_port=server.server_address[1])))
        assert found.is_ready()
        assert found.problem() == "it cannot list its experiments: 500: database disk image is malformed"
    finally:
        server.shutdown()
        server.server_close()

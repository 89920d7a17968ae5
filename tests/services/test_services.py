"""The real servers: slow to start, so most of it is one story told in order on one project."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from headrace.errors import PortTaken
from headrace.project import Project
from headrace.services import orchestrate
from headrace.serving.gateway import gateway
from headrace.serving.local_http import request
from headrace.serving.replicas import ports, supervisor
from headrace.settings import Settings, database
from tests.ports import free_ports, taken

SERVERS = ["prefect-server", "prefect-worker", "mlflow", "envoy", "desk", "keeper"]


@pytest.fixture
def settings() -> Settings:
    door, admin, mlflow, prefect, desk = free_ports(5)
    return Settings(
        gateway_port=door, gateway_admin_port=admin, mlflow_port=mlflow, prefect_port=prefect, api_port=desk, drain_seconds=5.0
    )


@pytest.fixture
def project(tmp_path: Path, settings: Settings) -> Iterator[Project]:
    root = tmp_path / "a clone"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    found = Project(root)
    try:
        yield found
    finally:
        orchestrate.down(found, settings)
        assert supervisor.supervised_processes(found) == []
        assert not found.runtime.exists()


def quiet(line: str) -> None: ...


def states(project: Project, settings: Settings) -> dict[str, str]:
    return {service["name"]: service["state"] for service in orchestrate.status(project, settings)["services"]}


def pids_of(project: Project) -> dict[str, int | None]:
    return {name: state.pid for name, state in supervisor.states(project).items()}


def started_anew(project: Project, before: dict[str, int | None]) -> set[str]:
    return {name for name, pid in pids_of(project).items() if pid != before[name]}


def wait_until(true: Callable[[], bool], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_services_start_are_reused_come_back_and_go(project: Project, settings: Settings) -> None:
    hooked: list[str] = []
    found = orchestrate.up(project, settings, quiet, lambda: hooked.append(states(project, settings)["prefect-server"]))
    assert [(service.name, service.state) for service in found if service.name in SERVERS] and {
        service.name: service.state for service in found
    } == dict.fromkeys(SERVERS, "ready")
    assert hooked == ["ready"]
    assert states(project, settings) == dict.fromkeys(SERVERS, "ready")

    pids = pids_of(project)
    assert orchestrate.outdated(project, settings) == []
    orchestrate.up(project, settings, quiet)
    assert pids_of(project) == pids

    # An upgrade of this code, then another setting of the door: just what is concerned starts anew, Envoy in no case.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orchestrate, "code_digest", lambda: "0123456789ab")
        assert orchestrate.outdated(project, settings) == ["desk", "keeper"]
        said: list[str] = []
        orchestrate.up(project, settings, said.append)
        assert [line for line in said if "anew" in line] == [
            f"{name} is starting anew: its code or its settings have changed" for name in ("desk", "keeper")
        ]
        assert orchestrate.outdated(project, settings) == []
        assert started_anew(project, pids) == {"desk", "keeper"}
        pids = pids_of(project)
        patient = settings.model_copy(update={"request_seconds": 45.0})
        assert orchestrate.outdated(project, patient) == ["desk", "envoy", "keeper"]
        orchestrate.up(project, patient, quiet)
        assert started_anew(project, pids) == {"desk", "keeper"}
        assert gateway.runs_with_settings(project, patient)
    orchestrate.up(project, settings, quiet)
    pids = pids_of(project)

    victim = pids["prefect-server"]
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: supervisor.states(project)["prefect-server"].pid not in (None, victim))
    orchestrate.up(project, settings, quiet)
    assert states(project, settings) == dict.fromkeys(SERVERS, "ready")

    prefect, mlflow = ((settings.host, port) for port in (settings.prefect_port, settings.mlflow_port))
    assert request(prefect, "/api/work_pools/filter", method="POST", body={}).json()[0]["type"] == "process"
    assert "html" in request(prefect, "/").text
    assert "html" in request(mlflow, "/").text

    orchestrate.down(project, settings)
    assert supervisor.supervised_processes(project) == []
    assert states(project, settings) == dict.fromkeys(SERVERS, "stopped")
    used = (settings.prefect_port, settings.mlflow_port, settings.gateway_port, settings.gateway_admin_port, settings.api_port)
    assert [port for port in used if not ports.is_free(port)] == []


def test_nothing_runs_is_a_status_and_down_is_safe(project: Project, settings: Settings) -> None:
    assert orchestrate.status(project, settings)["models"] == []
    assert states(project, settings) == dict.fromkeys(SERVERS, "stopped")
    orchestrate.down(project, settings)


@pytest.mark.parametrize("field", ["prefect_port", "mlflow_port", "gateway_port", "gateway_admin_port", "api_port"])
def test_a_port_of_another_program_is_named_before_anything_starts(field: str, project: Project, settings: Settings) -> None:
    with taken(getattr(settings, field)), pytest.raises(PortTaken, match=f"in use by .*pid {os.getpid()}") as caught:
        orchestrate.up(project, settings, quiet)
    assert caught.value.where == field
    assert supervisor.states(project) == {}


def _initialise(root: str) -> float:
    started = time.perf_counter()
    orchestrate.initialise_tracking(Project(Path(root)))
    return time.perf_counter() - started


def test_the_tracking_database_is_made_once_by_processes_at_the_same_time(project: Project) -> None:
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_initialise, [str(project.root)] * 3))
    assert [path.name for path in project.mlruns.iterdir()] == ["mlflow.db"]
    connection = sqlite3.connect(database(project))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT name, artifact_location FROM experiments").fetchall() == [
        ("Default", (project.mlruns / "artifacts" / "0").as_uri())
    ]
    connection.close()
    inode = database(project).stat().st_ino
    _initialise(str(project.root))
    assert database(project).stat().st_ino == inode


def test_a_killed_initialisation_leaves_no_half_made_database(project: Project) -> None:
    import subprocess

    code = (
        "from pathlib import Path; from headrace.project import Project; "
        "from headrace.services.orchestrate import initialise_tracking; "
        f"initialise_tracking(Project(Path({str(project.root)!r})))"
    )
    started = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    wait_until(lambda: any(project.mlruns.glob(".mlflow.db.*.part")) if project.mlruns.exists() else False)
    started.kill()
    started.wait()
    assert not database(project).exists()
    orchestrate.initialise_tracking(project)
    assert database(project).exists()


def test_writers_do_not_fail_each_other_with_the_write_ahead_log(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    orchestrate.initialise_tracking(project)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database(project)}")
    barrier = threading.Barrier(4)

    def write(writer: int) -> int:
        run = client.create_run("0").info.run_id
        barrier.wait()
        for step in range(20):
            client.log_metric(run, "loss", float(step), step=step)
        return len(client.get_metric_history(run, "loss"))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [20] * 4


def test_the_prefect_environment_is_one_that_prefect_accepts(project: Project, settings: Settings) -> None:
    import subprocess

    code = (
        "from prefect.settings import get_current_settings as s; c = s(); "
        "print(c.api.url, c.home, c.server.ephemeral.enabled, c.server.analytics_enabled)"
    )
    environment = {**os.environ, **orchestrate.prefect_environment(project, settings)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert said.strip() == f"http://127.0.0.1:{settings.prefect_port}/api {project.state / 'prefect'} False False"

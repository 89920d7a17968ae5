"""Tests of the real servers. They are slow to start, so one test goes through all that happens to running ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import PortTaken
from headrace.project import Project
from headrace.services import api_server
from headrace.services import up as services
from headrace.services.prefect import prefect_environment
from headrace.services.status import status
from headrace.serving.gateway import gateway
from headrace.serving.local_http import request
from headrace.serving.replicas import ports, supervisor
from headrace.settings import Settings
from tests.ports import free_ports, taken

ALL_READY = dict.fromkeys(["prefect-server", "prefect-worker", "mlflow", "envoy", "api-server", "watchdog"], "ready")
DEPLOYMENTS = """
name: test
deployments:
  - name: nightly
    entrypoint: flow.py:nightly
    work_pool: {name: headrace}
    schedules: [{cron: "0 3 * * *", timezone: UTC, active: true}]
"""
FLOW = "from prefect import flow\n\n@flow\ndef nightly():\n    pass\n"


@pytest.fixture
def settings() -> Settings:
    gateway_port, admin, mlflow, prefect, api = free_ports(5)
    return Settings(
        gateway_port=gateway_port,
        gateway_admin_port=admin,
        mlflow_port=mlflow,
        prefect_port=prefect,
        api_port=api,
        drain_seconds=5.0,
    )


@pytest.fixture
def project(tmp_path: Path, settings: Settings) -> Iterator[Project]:
    root = tmp_path / "a clone"
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "prefect.yaml").write_text(DEPLOYMENTS)
    (root / "flow.py").write_text(FLOW)
    found = Project(root)
    try:
        yield found
    finally:
        services.down(found.using(settings))
        assert supervisor.supervised_processes(found) == []
        assert not found.runtime_dir.exists()


def ignore(line: str) -> None: ...


def states(project: Project, settings: Settings) -> dict[str, str]:
    return {service["name"]: service["state"] for service in status(project.using(settings))["services"]}


def pids_of(project: Project) -> dict[str, int | None]:
    return {name: state.pid for name, state in supervisor.states(project).items()}


def restarted(project: Project, before: dict[str, int | None]) -> set[str]:
    return {name for name, pid in pids_of(project).items() if pid != before[name]}


def wait_until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def prefect_api(settings: Settings, path: str, body: dict[str, Any]) -> Any:
    return request(("127.0.0.1", settings.prefect_port), f"/api/{path}", method="POST", body=body).json()


def test_services_start_are_reused_restarted_and_stopped(project: Project, settings: Settings) -> None:
    # A server that an older version ran under another name, and a program that is not a server of Headrace.
    (project.root / "old" / "headrace").mkdir(parents=True)
    (project.root / "old" / "headrace" / "old_server.py").write_text("import time; time.sleep(600)")
    old_code = {"PYTHONPATH": str(project.root / "old")}
    supervisor.add(project, supervisor.Program("old-server", [sys.executable, "-m", "headrace.old_server"], old_code))
    supervisor.add(project, supervisor.Program("replica", [sys.executable, "-c", "import time; time.sleep(600)"]))
    old = pids_of(project)["old-server"]

    services.start_for_release(project.using(settings), ignore)
    assert states(project, settings)["envoy"] == "ready"
    services.wait_for_background(project)
    assert states(project, settings) == ALL_READY
    assert pids_of(project).keys() == {*ALL_READY, "replica"}
    assert old is not None and not Path(f"/proc/{old}").exists()
    supervisor.remove(project, "replica", 1.0)

    pids, observed = pids_of(project), []
    assert services.outdated(project.using(settings)) == []
    found = services.up(project.using(settings), ignore, lambda: observed.append(states(project, settings)["prefect-server"]))
    assert {service.name: service.state for service in found} == ALL_READY
    assert (observed, pids_of(project)) == (["ready"], pids)

    # After an upgrade of this code, then with another setting of the gateway: only servers that use it restart, Envoy never.
    with pytest.MonkeyPatch.context() as patch:
        for module in (services, api_server):
            patch.setattr(module, "code_digest", lambda: "0123456789ab")
        assert services.outdated(project.using(settings)) == ["api-server", "watchdog"]
        printed: list[str] = []
        services.up(project.using(settings), printed.append)
        assert [line for line in printed if "restarting" in line] == [
            f"{name} is restarting: its code or its settings have changed" for name in ("api-server", "watchdog")
        ]
        assert services.outdated(project.using(settings)) == []
        assert restarted(project, pids) == {"api-server", "watchdog"}
        pids = pids_of(project)
        slower = settings.model_copy(update={"request_seconds": 45.0})
        assert services.outdated(project.using(slower)) == ["api-server", "envoy", "watchdog"]
        services.up(project.using(slower), ignore)
        assert restarted(project, pids) == {"api-server", "watchdog"}
        assert gateway.runs_with_settings(project.using(slower))
    services.up(project.using(settings), ignore)
    pids = pids_of(project)

    # A schedule of a deployment has runs that wait for their time.
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    wait_until(lambda: prefect_api(settings, "flow_runs/filter", scheduled))
    log = supervisor.log_path(project, "prefect-server").read_text()
    assert "Traceback" not in log, log

    killed = pids["prefect-server"]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: supervisor.states(project)["prefect-server"].pid not in (None, killed))
    services.up(project.using(settings), ignore)
    assert states(project, settings) == ALL_READY

    assert prefect_api(settings, "work_pools/filter", {})[0]["type"] == "process"
    for port in (settings.prefect_port, settings.mlflow_port):
        assert "html" in request(("127.0.0.1", port), "/").text

    services.down(project.using(settings))
    assert supervisor.supervised_processes(project) == []
    assert states(project, settings) == dict.fromkeys(ALL_READY, "stopped")
    used = (settings.prefect_port, settings.mlflow_port, settings.gateway_port, settings.gateway_admin_port, settings.api_port)
    assert [port for port in used if not ports.is_free(port)] == []


def test_down_also_ends_a_start_in_the_background(project: Project, settings: Settings) -> None:
    services.start_for_release(project.using(settings), ignore)
    services.down(project.using(settings))
    assert supervisor.supervised_processes(project) == []
    assert supervisor.states(project) == {}


def test_status_and_down_work_when_nothing_runs(project: Project, settings: Settings) -> None:
    assert status(project.using(settings))["models"] == []
    assert states(project, settings) == dict.fromkeys(ALL_READY, "stopped")
    services.down(project.using(settings))


@pytest.mark.parametrize("field", ["prefect_port", "mlflow_port", "gateway_port", "gateway_admin_port", "api_port"])
def test_a_port_of_another_program_is_reported_before_anything_starts(field: str, project: Project, settings: Settings) -> None:
    with taken(getattr(settings, field)), pytest.raises(PortTaken, match=f"in use by .*pid {os.getpid()}") as caught:
        services.up(project.using(settings), ignore)
    assert caught.value.where == field
    assert supervisor.states(project) == {}


def test_only_the_gateway_listens_beyond_this_machine(project: Project) -> None:
    """Prefect and MLflow have no access control."""
    settings = Settings(host="0.0.0.0")
    servers = {server.name: server for server in services.servers(project.using(settings))}
    for name in ("prefect-server", "mlflow"):
        argv = servers[name].program.argv
        assert argv[argv.index("--host") + 1] == "127.0.0.1"
        assert not any("0.0.0.0" in text for text in (*argv, *servers[name].program.env.values()))
    assert (servers["prefect-server"].address, servers["mlflow"].address) == ("http://127.0.0.1:4200", "http://127.0.0.1:5000")
    assert prefect_environment(project.using(settings))["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert servers["api-server"].address == "http://127.0.0.1:8090"


def test_prefect_accepts_the_environment(project: Project, settings: Settings) -> None:
    code = (
        "from prefect.settings import get_current_settings as s; c = s(); "
        "print(c.api.url, c.home, c.server.ephemeral.enabled, c.server.analytics_enabled)"
    )
    environment = {**os.environ, **prefect_environment(project.using(settings))}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"http://127.0.0.1:{settings.prefect_port}/api {project.state / 'prefect'} False False"

"""Tests of the real servers. They are slow to start, so one test goes through all that happens to running ones."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from headrace.errors import PortTaken
from headrace.project import Project
from headrace.services import api_server, prefect_api, probes, systemd
from headrace.services import up as services
from headrace.services.authentication import STARTED, login
from headrace.services.authentication.credentials import basic, credential
from headrace.services.authentication.login_page import LOGIN_PATH
from headrace.services.prefect import WORK_POOL, prefect_environment
from headrace.services.service import settings_environment
from headrace.services.status import status
from headrace.serving.access.tokens import issue, operator_token
from headrace.serving.gateway import gateway
from headrace.serving.local_http import request
from headrace.serving.replicas import ports, project_processes, supervisor
from headrace.settings import Settings
from tests.other_user import as_other_user
from tests.ports import free_ports, taken
from tests.services import intruder

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
    gateway_port, admin, mlflow, prefect = free_ports(4)
    return Settings(
        gateway_port=gateway_port,
        gateway_admin_port=admin,
        mlflow_port=mlflow,
        prefect_port=prefect,
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


def in_prefect(project: Project, settings: Settings, path: str, body: dict[str, Any]) -> Any:
    answer = prefect_api.call(project.using(settings), path, "POST", body)
    assert answer is not None and answer.status in (200, 201, 204), answer
    return answer.json_or_text()


def require_authentication(project: Project, settings: Settings) -> None:
    """Prefect and MLflow refuse every request without their secret, and every one that a page of another site sends."""
    deployment = in_prefect(project, settings, "/deployments/filter", {})[0]["id"]
    start = {"job_variables": {"command": "touch started", "env": {"PATH": "/nowhere"}}}
    for server, port, calls in (
        ("prefect", settings.prefect_port, [f"/api/deployments/{deployment}/create_flow_run", "/api/work_pools/filter"]),
        ("mlflow", settings.mlflow_port, ["/api/2.0/mlflow/experiments/create", "/ajax-api/2.0/mlflow/runs/search"]),
    ):
        log = "prefect-server.log" if server == "prefect" else "mlflow.log"
        assert f"{STARTED} {server}" in (project.logs / log).read_text(), "errors are counted from here"
        address, secret = ("127.0.0.1", port), {"authorization": basic(credential(project, server) or "")}
        for path in (*calls, "/", "/api/health", "/health", "/ui-settings"):
            for method in ("GET", "POST", "OPTIONS"):
                for foreign in ({"origin": "http://evil.example"}, {"host": "evil.example"}, {"origin": "null"}):
                    assert request(address, path, method=method, body=start, headers={**foreign, **secret}).status == 403
                assert request(address, path, method=method, body=start).status == 401
    answer = prefect_api.call(project.using(settings), f"/deployments/{deployment}/create_flow_run", "POST", start)
    assert answer is not None and answer.status in (409, 422), "the work pool takes neither a command nor variables"
    pools = in_prefect(project, settings, "/work_pools/filter", {})
    assert [(pool["name"], pool["base_job_template"]["variables"]["properties"]) for pool in pools] == [(WORK_POOL, {})]


def require_login(project: Project, settings: Settings) -> None:
    """`headrace open` logs a browser in: the pages of both servers, and what they ask for, are then answered."""
    for server, port, path in (
        ("prefect", settings.prefect_port, "/api/admin/version"),
        ("mlflow", settings.mlflow_port, "/ajax-api/2.0/mlflow/experiments/search?max_results=1"),
    ):
        link = login.login_link(project.using(settings), server)
        code = link.partition("#")[2]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False, follow_redirects=True) as browser:
            assert browser.get("/", headers={"accept": "text/html"}).status_code == 401
            assert browser.post(LOGIN_PATH, content=code).status_code == 204
            assert "html" in browser.get("/", headers={"accept": "text/html"}).text
            assert browser.get(path).status_code == 200


def require_people_only_look(project: Project, settings: Settings) -> None:
    """MLflow's own client reads with a reviewer's token; what it would change is refused. Prefect takes no such token."""
    token, _ = issue(project.using(settings), "ada", (), 3600, role="reviewer")
    header = {"authorization": f"Bearer {token}"}
    address = ("127.0.0.1", settings.mlflow_port)
    assert "html" in request(address, "/", headers=header).text
    found = request(address, "/api/2.0/mlflow/experiments/search?max_results=5", headers=header)
    assert found.json()["experiments"]
    change = {"name": "by a reviewer"}
    refused = request(address, "/api/2.0/mlflow/experiments/create", method="POST", body=change, headers=header)
    assert refused.status == 403 and "the role reviewer of ada may look at MLflow" in refused.text
    assert (
        request(("127.0.0.1", settings.prefect_port), "/api/flows/filter", method="POST", body={}, headers=header).status == 401
    )


def require_nobody_else_gets_in(project: Project, settings: Settings) -> None:
    """Another user of this machine, and a page of another site, are refused by all that listens, and can read no secret."""
    ports_of = intruder.listening_ports(project)
    assert {settings.prefect_port, settings.mlflow_port, settings.gateway_port} <= ports_of.keys()
    assert not {"api-server"} & set(ports_of.values())
    sockets = intruder.unix_sockets(project)
    assert {path.name for path in sockets} >= {"supervisor.sock", "admin.sock", "api-server.sock"}
    assert intruder.exposed_secrets(project) == []
    secrets = [(credential(project, name) or "").partition(":")[2] for name in ("prefect", "mlflow")]
    assert intruder.secrets_in_commands(project, [*secrets, operator_token(project)]) == []
    as_other = as_other_user if os.getuid() == 0 else lambda function: function()
    accepted = as_other(lambda: {name: answer for port, name in ports_of.items() if (answer := intruder.answers(port))})
    assert accepted == {}
    if os.getuid() == 0:
        assert as_other_user(lambda: intruder.opened_sockets(sockets)) == []


def require_watchdog_finds_all_well(project: Project, settings: Settings) -> None:
    """The real servers answer the watchdog's requests: it would restart what refuses them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings_environment(project.using(settings)).items():
            patch.setenv(name, value)
        targets = list(probes.programs(project.using(settings)))
    assert {target.name for target in targets} == {"envoy", "api-server", "mlflow", "prefect-server"}
    answers = {target.name: request(target.address, target.path, headers=target.headers).status for target in targets}
    assert answers == dict.fromkeys(answers, 200)


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
    wait_until(lambda: in_prefect(project, settings, "/flow_runs/filter", scheduled))
    log = supervisor.log_path(project, "prefect-server").read_text()
    assert "Traceback" not in log, log

    killed = pids["prefect-server"]
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: supervisor.states(project)["prefect-server"].pid not in (None, killed))
    services.up(project.using(settings), ignore)
    assert states(project, settings) == ALL_READY

    require_watchdog_finds_all_well(project, settings)
    require_authentication(project, settings)
    require_login(project, settings)
    require_people_only_look(project, settings)
    require_nobody_else_gets_in(project, settings)

    # As after a reboot: the command of the systemd unit finds no process, only files, and nothing of a shell.
    for process in [*project_processes.find_supervisords(project), *supervisor.supervised_processes(project)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings_environment(project.using(settings)).items():
            patch.setenv(name, value)
        unit = systemd.render(project.using(settings))
    environment = dict(json.loads(line.partition("=")[2]).split("=", 1) for line in unit.splitlines() if "Environment=" in line)
    start = next(line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStart="))
    done = subprocess.run(shlex.split(start), cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert states(project, settings) == ALL_READY

    services.down(project.using(settings))
    assert supervisor.supervised_processes(project) == []
    assert states(project, settings) == dict.fromkeys(ALL_READY, "stopped")
    used = (settings.prefect_port, settings.mlflow_port, settings.gateway_port, settings.gateway_admin_port)
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


@pytest.mark.parametrize("field", ["prefect_port", "mlflow_port", "gateway_port", "gateway_admin_port"])
def test_a_port_of_another_program_is_reported_before_anything_starts(field: str, project: Project, settings: Settings) -> None:
    with taken(getattr(settings, field)), pytest.raises(PortTaken, match=f"in use by .*pid {os.getpid()}") as caught:
        services.up(project.using(settings), ignore)
    assert caught.value.where == field
    assert supervisor.states(project) == {}


def test_only_the_gateway_listens_beyond_this_machine(project: Project) -> None:
    settings = Settings(host="0.0.0.0")
    servers = {server.name: server for server in services.servers(project.using(settings))}
    for name in ("prefect-server", "mlflow"):
        program = servers[name].program
        assert not any("0.0.0.0" in text for text in (*program.argv, *program.env.values()))
    assert (servers["prefect-server"].address, servers["mlflow"].address) == ("http://127.0.0.1:4200", "http://127.0.0.1:5000")
    assert prefect_environment(project.using(settings))["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert servers["api-server"].address == "unix:.headrace/sockets/api-server.sock"


def test_prefect_accepts_the_environment(project: Project, settings: Settings) -> None:
    code = (
        "from prefect.settings import get_current_settings as s; c = s(); "
        "print(c.api.url, c.home, c.server.ephemeral.enabled, c.server.analytics_enabled)"
    )
    environment = {**os.environ, **prefect_environment(project.using(settings))}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"http://127.0.0.1:{settings.prefect_port}/api {project.state / 'prefect'} False False"

"""The servers of the embedded profile: Prefect's server and worker, MLflow, Envoy, the desk, the keeper. Started once, reused,
kept alive.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from headrace.console import Report
from headrace.errors import HeadraceError, ServiceError
from headrace.project import Project
from headrace.services import watchdog
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.model_route import ModelRoute, versions
from headrace.serving.local_http import try_request
from headrace.serving.replicas import ports, runners, supervisor
from headrace.serving.replicas.replica import Replica
from headrace.settings import Settings, tracking_uri
from headrace.tracking.database import artifact_root, initialise_tracking
from headrace.tracking.provenance import code_digest

__all__ = ["Service", "down", "initialise_tracking", "outdated", "prefect_environment", "status", "up"]

NAMES = ("prefect-server", "prefect-worker", "mlflow", "envoy", "desk", "keeper")
POOL = "headrace"
"""Prefect's work pool."""
READY_SECONDS = 120.0
"""A server may take this long on a busy machine before it counts as broken."""


@dataclass(frozen=True)
class Service:
    """One server and how it is."""

    name: str
    state: str
    """`ready`, `starting`, `stopped`, `failed`, or `elsewhere` when a setting points to a server of someone else."""
    address: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def up(
    project: Project,
    settings: Settings,
    report: Report,
    on_prefect_ready: Callable[[], None] | None = None,
    wait_for: Collection[str] = NAMES,
) -> list[Service]:
    """Starts what is not up yet, and anew what is `outdated`, all at the same time; returns when those in `wait_for` answer a
    real request.

    A release needs `prefect-server` and `envoy` alone: the others then start while it works. `on_prefect_ready` is called
    once Prefect's API answers and its work pool is there: the place to register deployments.

    Raises:
        PortTaken: another program holds a port; with its pid and the setting that moves it.
        ServiceError: a server does not come up; with its last log lines.
    """
    supervisor.ensure_running(project)
    _require_ports(project, settings)
    with ThreadPoolExecutor(4) as pool:
        starts = [
            pool.submit(_start_prefect, project, settings, report, on_prefect_ready, "prefect-worker" in wait_for),
            pool.submit(_start_gateway, project, settings),
        ]
        starts[1].exception()  # the desk lets everybody in no earlier than the door does
        if "desk" not in wait_for:
            starts[0].exception()
        starts.append(pool.submit(_start_api_server, project, settings, report, "desk" in wait_for))
        if "mlflow" not in wait_for:
            starts[0].exception()  # not at the same time: it would take the processor from what is waited for
        starts.append(pool.submit(_start_mlflow, project, settings, report, "mlflow" in wait_for))
    return [service for start in starts for service in start.result()]


def outdated(project: Project, settings: Settings) -> list[str]:
    """What `up` would start anew, or let in other settings: it runs as other code or other settings had it. In milliseconds."""
    wanted = [_prefect_server(project, settings), _prefect_worker(project, settings), envoy_process.program(project, settings)]
    wanted += [_api_server(project, settings), _watchdog(project, settings)]
    if settings.tracking_uri is None:
        wanted.append(_mlflow(project, settings))
    found = {program.name for program in wanted if supervisor.has_changed(project, program)}
    if not gateway.runs_with_settings(project, settings):
        found.add(gateway.PROGRAM)
    return sorted(found)


def down(project: Project, settings: Settings, report: Report | None = None) -> None:
    """Lets requests under way end, stops every server and replica, and frees their ports. Safe when nothing runs."""
    with contextlib.suppress(HeadraceError):
        envoy_process.stop(project, settings, settings.drain_seconds)
    endpoints = [e for found in gateway.read_routes(project).values() for e in (*found.endpoints, *found.previous)]
    placed = {endpoint.runner for endpoint in endpoints} | {settings.runner}
    if "docker" in placed:
        with contextlib.suppress(HeadraceError):  # no engine, no containers
            engine = runners.runner_for(project, settings, "docker")
            for replica in engine.list():
                if report:
                    report(f"stopping {replica.id}")
                engine.stop(replica, settings.drain_seconds)
    gateway.remove_all_models(project, settings)
    supervisor.shutdown(project, stop_seconds=settings.drain_seconds)
    for path in (project.state / "replicas").glob("*.json"):
        path.unlink(missing_ok=True)


def status(project: Project, settings: Settings) -> dict[str, Any]:
    """`models` and `services` as plain values; quick, and right also when nothing runs."""
    programs = supervisor.states(project)
    return {
        "models": [_model(model, found, settings) for model, found in sorted(gateway.read_routes(project).items())],
        "services": [service.to_dict() for service in _services(project, settings, programs)],
    }


def prefect_environment(project: Project, settings: Settings) -> dict[str, str]:
    """The variables under which every process here uses Prefect: flows, worker and server alike."""
    return {
        "PREFECT_API_URL": f"{_prefect_address(settings)}/api",
        "PREFECT_HOME": str(project.state / "prefect"),
        "PREFECT_PROFILES_PATH": str(project.state / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",  # without a server a flow fails at once, not after 20 s
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_PROMPT": "false",
        # A flow waits at its end for the last heartbeat's second to pass; the longer the interval, the fewer events.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "300",
        # The console shows Headrace's own steps; every line of a run still goes to Prefect's UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
        "HEADRACE_ROOT": str(project.root),
    }


# -- Prefect


def _prefect_address(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.prefect_port}"


def _start_prefect(
    project: Project, settings: Settings, report: Report, ready: Callable[[], None] | None, wait_for_worker: bool
) -> list[Service]:
    (project.state / "prefect").mkdir(parents=True, exist_ok=True)
    _keep_up(project, _prefect_server(project, settings), lambda: _is_prefect_ready(settings), report)
    _make_pool(settings)
    worker = _prefect_worker(project, settings)
    _add(project, worker, report)
    if ready:
        ready()
    online = _keep_up(project, worker, lambda: _is_worker_online(project, settings), report, wait_for_worker)
    return [Service("prefect-server", "ready", _prefect_address(settings)), Service("prefect-worker", online, f"pool {POOL}")]


def _prefect_server(project: Project, settings: Settings) -> supervisor.Program:
    return supervisor.Program(
        "prefect-server",
        [sys.executable, "-m", "prefect", "server", "start", "--host", settings.host, "--port", str(settings.prefect_port)],
        {
            **prefect_environment(project, settings),
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
            "PREFECT_UI_API_URL": f"{_prefect_address(settings)}/api",
        },
        stop_seconds=10.0,
        start_retries=10,
        priority=100,
        code=version("prefect"),
    )


def _prefect_worker(project: Project, settings: Settings) -> supervisor.Program:
    return supervisor.Program(
        "prefect-worker",
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", "local"],
        {**prefect_environment(project, settings), "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO"},
        stop_seconds=10.0,
        start_retries=10,
        priority=200,
        code=version("prefect"),
    )


def _is_prefect_ready(settings: Settings) -> bool:
    answer = try_request((settings.host, settings.prefect_port), "/api/health")
    return answer is not None and answer.status == 200 and answer.json_or_text() is True


def _make_pool(settings: Settings) -> None:
    """A pool of type process; that it is there already (409) is as good. The worker completes it when it starts."""
    pool = {"name": POOL, "type": "process"}
    answer = try_request((settings.host, settings.prefect_port), "/api/work_pools/", method="POST", body=pool)
    if answer is None or answer.status not in (200, 201, 409):
        body = answer.text if answer else "no answer"
        raise ServiceError(
            f"Prefect's server does not make the work pool {POOL!r}: {body}",
            where=".headrace/logs/prefect-server.log",
            hint="headrace down, then headrace up",
        )


def _is_worker_online(project: Project, settings: Settings) -> bool:
    """Whether the worker of this very process has said so: an earlier one stays ONLINE for a while after its death."""
    program = supervisor.states(project).get("prefect-worker")
    path = f"/api/work_pools/{POOL}/workers/filter"
    answer = try_request((settings.host, settings.prefect_port), path, method="POST", body={})
    if not program or not program.pid or not answer or answer.status != 200:
        return False
    from datetime import datetime

    return any(
        worker["status"] == "ONLINE"
        and worker["last_heartbeat_time"]
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= program.started_at
        for worker in answer.json()
    )


# -- MLflow


def _start_mlflow(project: Project, settings: Settings, report: Report, wait: bool) -> list[Service]:
    if settings.tracking_uri is not None:
        return [Service("mlflow", "elsewhere", settings.tracking_uri)]
    initialise_tracking(project)
    state = _keep_up(project, _mlflow(project, settings), lambda: _is_mlflow_ready(settings), report, wait)
    return [Service("mlflow", state, _mlflow_address(settings))]


def _mlflow(project: Project, settings: Settings) -> supervisor.Program:
    return supervisor.Program(
        "mlflow",
        # What `mlflow server` starts after preparing these variables: without the parent that only waits, the server is
        # up in half the time and takes half the memory.
        [
            sys.executable,
            "-m",
            "uvicorn",
            "--host",
            settings.host,
            "--port",
            str(settings.mlflow_port),
            "--workers",
            "1",
            "--log-level",
            "warning",
            "mlflow.server.fastapi_app:app",
        ],
        {
            "_MLFLOW_SERVER_FILE_STORE": tracking_uri(project, settings),
            "_MLFLOW_SERVER_ARTIFACT_ROOT": artifact_root(project),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
        },
        stop_seconds=5.0,
        start_retries=10,
        priority=300,
        code=version("mlflow"),
    )


def _mlflow_address(settings: Settings) -> str:
    return f"http://{settings.host}:{settings.mlflow_port}"


def _is_mlflow_ready(settings: Settings) -> bool:
    answer = try_request((settings.host, settings.mlflow_port), "/health")
    return answer is not None and answer.status == 200


# -- Envoy


def _start_gateway(project: Project, settings: Settings) -> list[Service]:
    envoy_process.start(project, settings)
    return [Service("envoy", "ready", gateway.address(settings))]


# -- the desk and the keeper


def _start_api_server(project: Project, settings: Settings, report: Report, wait: bool) -> list[Service]:
    state = _keep_up(project, _api_server(project, settings), lambda: _is_api_ready(settings), report, wait)
    _add(project, _watchdog(project, settings), report)
    return [Service("desk", state, _api_address(settings)), Service("keeper", "ready", "")]


def _api_server(project: Project, settings: Settings) -> supervisor.Program:
    return supervisor.Program(
        "desk",
        [sys.executable, "-m", "headrace.services.api"],
        settings_environment(project, settings),
        stop_seconds=25.0,
        start_retries=10,
        priority=550,
        code=code_digest(),
    )


def _watchdog(project: Project, settings: Settings) -> supervisor.Program:
    return replace(watchdog.program(settings_environment(project, settings), settings.ready_seconds), code=code_digest())


def settings_environment(project: Project, settings: Settings) -> dict[str, str]:
    """Variables under which a program of this house sees these very settings, whoever started supervisord with which.

    Without `runner`, which is a matter of each release: `headrace run --runner docker` starts nothing anew.
    """
    values = settings.model_dump(mode="json", exclude={"runner"}, exclude_none=True)
    told = {f"HEADRACE_{name.upper()}": v if isinstance(v, str) else json.dumps(v) for name, v in values.items()}
    return {**told, "HEADRACE_ROOT": str(project.root)}


def _api_address(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.api_port}"


def _is_api_ready(settings: Settings) -> bool:
    answer = try_request(("127.0.0.1", settings.api_port), "/readyz")
    return answer is not None and answer.status == 200


# -- all of them


def _require_ports(project: Project, settings: Settings) -> None:
    """
    Raises:
        PortTaken: a port is in use by a process that this project's supervisord did not start.
    """
    wanted = [
        (settings.prefect_port, "prefect_port", settings.host),
        (settings.gateway_port, "gateway_port", settings.host),
        (settings.gateway_admin_port, "gateway_admin_port", "127.0.0.1"),
        (settings.api_port, "api_port", "127.0.0.1"),
    ]
    if settings.tracking_uri is None:
        wanted.append((settings.mlflow_port, "mlflow_port", settings.host))
    ports.require_ports(wanted, lambda: {process.pid for process in supervisor.supervised_processes(project)})


def _keep_up(
    project: Project, program: supervisor.Program, ready: Callable[[], bool], report: Report, wait: bool = True
) -> str:
    """Adds the program and returns `ready` when it is; one that runs but never answers is started anew once.

    Without `wait` it returns `starting` where it would wait.
    """
    if not _add(project, program, report) and ready():
        return "ready"
    if not wait:
        return "starting"
    for attempt in (1, 2):
        why = _wait_ready(project, program, ready)
        if why is None:
            return "ready"
        if attempt == 1:
            report(f"{program.name}: {why}; starting it anew")
            supervisor.restart(project, program.name, program.stop_seconds)
    said = supervisor.tail(supervisor.log_path(project, program.name), 8).strip()
    raise ServiceError(
        f"{program.name} does not come up: {why}" + (f". Its last words:\n{said}" if said else ""),
        where=f".headrace/logs/{program.name}.log",
        hint="headrace down, then headrace up",
    )


def _add(project: Project, program: supervisor.Program, report: Report) -> bool:
    """Whether it was started; says so, and why it was where another ran."""
    why = " anew: its code or its settings have changed" if supervisor.has_changed(project, program) else ""
    fresh = supervisor.add(project, program)
    if fresh:
        report(f"{program.name} is starting{why}")
    return fresh


def _wait_ready(project: Project, program: supervisor.Program, ready: Callable[[], bool]) -> str | None:
    """None once it is ready, else why it is not."""
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        state = supervisor.states(project).get(program.name)
        if state is None or state.state in ("failed", "stopped"):
            return state.description if state else "it is gone"
        if time.monotonic() > deadline:
            return f"it does not answer within {READY_SECONDS:g} s"
        time.sleep(0.1)
    return None


def _services(project: Project, settings: Settings, programs: dict[str, supervisor.ProgramState]) -> list[Service]:
    checks: list[tuple[str, str, Callable[[], bool]]] = [
        ("prefect-server", _prefect_address(settings), lambda: _is_prefect_ready(settings)),
        ("prefect-worker", f"pool {POOL}", lambda: _is_worker_online(project, settings)),
        ("mlflow", _mlflow_address(settings), lambda: _is_mlflow_ready(settings)),
        ("envoy", gateway.address(settings), lambda: envoy_process.is_ready(project, settings)),
        ("desk", _api_address(settings), lambda: _is_api_ready(settings)),
        ("keeper", "", lambda: True),
    ]

    def judge(check: tuple[str, str, Callable[[], bool]]) -> Service:
        name, address, ready = check
        if name == "mlflow" and settings.tracking_uri is not None:
            return Service(name, "elsewhere", settings.tracking_uri)
        program = programs.get(name)
        if program is None or program.state in ("stopped", "exited"):
            return Service(name, "stopped", address)
        if program.state in ("failed", "failing"):
            return Service(name, "failed", address)
        return Service(name, "ready" if ready() else "starting", address)

    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(judge, checks))


def _model(model: str, served: ModelRoute, settings: Settings) -> dict[str, Any]:
    endpoints = served.pool("main")
    healthy = admin.healthy_endpoints(settings, model, "main")
    return {
        "name": model,
        "version": versions(endpoints),
        "alias": None,
        "replicas": len(endpoints),
        "ready": sum(endpoint.address in healthy for endpoint in endpoints),
        "address": gateway.address(settings, model),
        "runner": endpoints[0].runner if endpoints else None,
        "canary": _trial(served.pool("canary"), served.traffic.canary),
        "shadow": _trial(served.pool("shadow"), served.traffic.shadow),
        "predecessor": versions(served.previous) or None,
    }


def _trial(endpoints: list[Replica], percent: float) -> dict[str, Any] | None:
    """A version on trial; None where there is none."""
    if not endpoints:
        return None
    return {"version": versions(endpoints), "percent": percent, "replicas": len(endpoints)}

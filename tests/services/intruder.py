"""What another user of the machine, or a page of another site, tries against a running project."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import stat
from pathlib import Path

import psutil

from headrace.project import Project
from headrace.runtime.unix_socket import short_path
from headrace.serving.replicas import supervisor

PATHS = (
    "/",
    "/config_dump",
    "/quitquitquit",
    "/stats/prometheus",
    "/v1/models",
    "/v1/batches",
    "/v1/feedback",
    "/api/admin/settings",
    "/api/flow_runs/filter",
    "/api/work_pools/filter",
    "/ui-settings",
    "/headrace/codes",
    "/ajax-api/2.0/mlflow/experiments/search",
    "/api/2.0/mlflow/registered-models/set-tag",
    "/get-artifact?path=x&run_uuid=y",
    "/RPC2",
)
FOREIGN: tuple[dict[str, str], ...] = (
    {},
    {"origin": "http://evil.example"},
    {"host": "evil.example"},
    {"authorization": "Basic aGVhZHJhY2U6"},
    {"authorization": "Bearer x"},
)
REFUSALS = {400, 401, 403, 404, 405, 415}


def listening_ports(project: Project) -> dict[int, str]:
    """Every TCP port on which a process of the project listens, with the name of its program."""
    found = {}
    for process in supervisor.supervised_processes(project):
        with contextlib.suppress(psutil.Error):
            name = process.environ().get("SUPERVISOR_PROCESS_NAME", process.name())
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = name
    return found


def answers(port: int) -> dict[str, int]:
    """What the port answers to requests without a secret: only those that are not a refusal."""
    accepted = {}
    for path in PATHS:
        for method in ("GET", "POST"):
            for headers in FOREIGN:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                with contextlib.suppress(OSError, http.client.HTTPException):  # not an HTTP server, or it closes the connection
                    connection.request(method, path, b"{}" if method == "POST" else None, headers)
                    status = connection.getresponse().status
                    if status not in REFUSALS:
                        accepted[f"{method} {path} {headers}"] = status
                connection.close()
    return accepted


def opened_sockets(paths: list[Path]) -> list[Path]:
    """Those of the Unix sockets that this user can connect to."""
    found = []
    for path in paths:
        refused = contextlib.suppress(PermissionError, FileNotFoundError)
        with refused, socket.socket(socket.AF_UNIX) as connection, short_path(path) as address:
            connection.connect(address)
            found.append(path)
    return found


def unix_sockets(project: Project) -> list[Path]:
    """Every Unix socket in the project and its runtime folder."""
    return [path for path in _all_paths(project) if stat.S_ISSOCK(path.lstat().st_mode)]


def exposed_secrets(project: Project) -> list[Path]:
    """Secrets that the modes of the project's own folders and files let another user read, wherever the project lies."""
    secret = [project.keys, project.state / "login", project.state / "supervisor", project.runtime_dir]
    return [path for folder in secret for path in folder.rglob("*") if path.is_file() and not _is_private(path, folder)]


def secrets_in_commands(project: Project, secrets: list[str]) -> list[str]:
    """Command lines of the project's processes, which every user can read, with a secret in them."""
    lines = []
    for process in supervisor.supervised_processes(project):
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(process.cmdline()))
    return [line for line in lines if any(secret in line for secret in secrets)]


def _is_private(path: Path, folder: Path) -> bool:
    """Whether the file, or a folder from `folder` on, is closed to others."""
    return any(
        step.lstat().st_mode & 0o077 == 0 for step in (path, *path.parents) if step == path or step.is_relative_to(folder)
    )


def _all_paths(project: Project) -> list[Path]:
    folders = (project.state, project.runtime_dir)
    return [Path(at) / name for folder in folders for at, _, names in os.walk(folder) for name in names]

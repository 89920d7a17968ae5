"""supervisord's XML-RPC interface, and the states of programs that it reports."""

from __future__ import annotations

import contextlib
import http.client
import xmlrpc.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.local_http import UnixConnection
from headrace.serving.replicas.programs import socket_path

STATES = {0: "stopped", 10: "starting", 20: "running", 30: "failing", 40: "stopping", 100: "exited", 200: "failed"}
"""supervisord's state codes (supervisor/states.py); `failing`: it ended while starting and is started again."""
ANSWER_SECONDS = 10.0
BAD_NAME, ALREADY_ADDED, ALREADY_STARTED, NOT_RUNNING, SHUTTING_DOWN = 10, 90, 60, 70, 6
"""Fault codes of supervisor/xmlrpc.py."""

ProgramStateName = Literal["stopped", "starting", "running", "failing", "stopping", "exited", "failed", "unknown"]


@dataclass(frozen=True)
class ProgramState:
    """The state of a program, as supervisord reports it."""

    name: str
    state: ProgramStateName
    pid: int | None
    started_at: float
    """Seconds since the epoch; 0 if it has never run."""
    description: str


@contextlib.contextmanager
def connected(project: Project) -> Iterator[Any]:
    """The XML-RPC interface. Faults are raised as `ServiceError`, except those that `ignored` catches."""
    transport = _UnixTransport(socket_path(project), ANSWER_SECONDS)
    with xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport, allow_none=True) as server:
        try:
            yield server
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTTING_DOWN:
                raise
            raise ServiceError(
                f"supervisord refused the request: {fault.faultString}",
                where=".headrace/logs/supervisord.log",
                hint="headrace down, then headrace up",
            ) from None


@contextlib.contextmanager
def ignored(*faults: int) -> Iterator[None]:
    """Goes on where supervisord answers with one of these faults."""
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode not in faults:
            raise


def program_state(server: Any, name: str) -> ProgramState | None:
    """The state of one program; None when supervisord does not know it."""
    with ignored(BAD_NAME):
        return to_state(server.supervisor.getProcessInfo(name))
    return None


def to_state(info: Mapping[str, Any]) -> ProgramState:
    """The state in supervisord's answer (`getProcessInfo`)."""
    state: Any = STATES.get(info["state"], "unknown")
    return ProgramState(info["name"], state, info["pid"] or None, float(info["start"]), info["spawnerr"] or info["description"])


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket, with a time limit."""

    def __init__(self, path: Path, timeout_seconds: float) -> None:
        super().__init__()
        self._path, self._timeout_seconds = path, timeout_seconds

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return UnixConnection(self._path, self._timeout_seconds)

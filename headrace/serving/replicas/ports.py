"""Finds free ports, and the processes that listen on the others."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from headrace.errors import PortTaken
from headrace.serving.replicas.connections import tcp_connections


@dataclass(frozen=True)
class PortOwner:
    """The process that listens on a port; `pid` is None when it belongs to another user."""

    pid: int | None
    command: str


def user_state_folder() -> Path | None:
    """The folder for what all projects of one user share: `$XDG_STATE_HOME/headrace`, by default below
    `~/.local/state`; None if the user has no home that can be written to.
    """
    try:
        base = os.environ.get("XDG_STATE_HOME")
        folder = (Path(base) if base else Path.home() / ".local" / "state") / "headrace"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not block a port
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True


def find_owner(port: int) -> PortOwner | None:
    """The process that listens on `port`; None when the port is free."""
    import psutil

    for connection in tcp_connections():
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            with contextlib.suppress(psutil.Error):
                if connection.pid:
                    return PortOwner(connection.pid, " ".join(psutil.Process(connection.pid).cmdline())[:120])
            return PortOwner(None, "a process of another user")
    return None if is_free(port) else PortOwner(None, "an unknown process")


def require_free(port: int, setting: str, host: str = "127.0.0.1") -> None:
    """
    Raises:
        PortTaken: with the process that listens, the setting of the port, and a port that is free.
    """
    if is_free(port, host):
        return
    found = find_owner(port)
    owner = f"{found.command} (pid {found.pid})" if found and found.pid else (found.command if found else "another program")
    raise PortTaken(
        f"port {port} is in use by {owner}",
        where=setting,
        hint=f"stop it, or use another port: {setting} = {next_free(port + 1, host)} in headrace.toml "
        f"(or HEADRACE_{setting.upper()})",
    )


def require_ports(wanted: Iterable[tuple[int, str, str]], own_pids: Callable[[], Collection[int]]) -> None:
    """Checks that each port of `wanted` (port, setting, host) is free or used by a process of this project.

    Args:
        own_pids: process ids of this project; called only if a port is taken.

    Raises:
        PortTaken: another program holds a port.
    """
    taken = [(port, setting, host) for port, setting, host in wanted if not is_free(port, host)]
    own = own_pids() if taken else ()
    for port, setting, host in taken:
        found = find_owner(port)
        if found is not None and found.pid not in own:
            require_free(port, setting, host)


def next_free(start: int, host: str = "127.0.0.1") -> int:
    """The first free port from `start` upwards."""
    return next((port for port in range(start, 65536) if is_free(port, host)), 0)

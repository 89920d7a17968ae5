"""Finds free ports, and the processes that listen on the others."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import PortTaken


@dataclass(frozen=True)
class PortOwner:
    """The process that listens on a port; `pid` is None when it belongs to another user."""

    pid: int | None
    command: str


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

    for connection in _connections():
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            with contextlib.suppress(psutil.Error):
                if connection.pid:
                    return PortOwner(connection.pid, " ".join(psutil.Process(connection.pid).cmdline())[:120])
            return PortOwner(None, "a process of another user")
    return None if is_free(port) else PortOwner(None, "an unknown process")


def has_connections(port: int) -> bool:
    """Whether a process on this machine has an open connection to `port`."""
    import psutil

    return any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == port for c in _connections())


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


def reserve_port(ports: tuple[int, int], reservations: Path, used: Collection[int] = (), host: str = "127.0.0.1") -> int:
    """Reserves a free port from `ports` (first, last), which no other process of this project gets at the same time.

    Args:
        reservations: folder of lock files. A reservation ends with `release_port` or with this process.
        used: ports of known replicas, which may not listen yet.

    Raises:
        PortTaken: no port is left.
    """
    first, last = ports
    candidates = list(range(first, last + 1))
    random.shuffle(candidates)  # a port is not reused at once: a late client of the last replica must not reach another model
    for port in candidates:
        if port not in used and is_free(port, host) and _reserve(reservations, port):
            return port
    raise PortTaken(
        f"no free port from {first} to {last}",
        where="replica_ports",
        hint="widen replica_ports in headrace.toml, or stop all models: headrace down",
    )


_reservations: dict[int, object] = {}


def _reserve(folder: Path, port: int) -> bool:
    from filelock import FileLock, Timeout

    if port in _reservations:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"port-{port}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _reservations[port] = lock  # released with the process, however it ends
    return True


def release_port(port: int) -> None:
    """Ends a reservation, once the server listens or has failed."""
    from filelock import FileLock

    lock = _reservations.pop(port, None)
    if isinstance(lock, FileLock):
        lock.release()


def _connections() -> list[Any]:
    import psutil

    try:
        return list(psutil.net_connections("tcp"))
    except psutil.AccessDenied:  # macOS shows other users' sockets to root only
        return []

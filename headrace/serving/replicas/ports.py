"""Which ports are free, and who holds those that are not."""

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
class Holder:
    """The process that listens on a port; `pid` is None when it belongs to someone else."""

    pid: int | None
    command: str


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT do not hold a port
        try:
            sock.bind((host, port))
        except OSError:
            return False
        return True


def holder(port: int) -> Holder | None:
    """Who listens on `port`; None when nobody does."""
    import psutil

    for connection in _connections():
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            with contextlib.suppress(psutil.Error):
                if connection.pid:
                    return Holder(connection.pid, " ".join(psutil.Process(connection.pid).cmdline())[:120])
            return Holder(None, "a process of another user")
    return None if is_free(port) else Holder(None, "an unknown process")


def has_connections(port: int) -> bool:
    """Whether anyone on this machine has a connection open to a server on `port`."""
    import psutil

    return any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == port for c in _connections())


def require_free(port: int, setting: str, host: str = "127.0.0.1") -> None:
    """
    Raises:
        PortTaken: naming the holder, the setting that moves the port, and a port that is free.
    """
    if is_free(port, host):
        return
    found = holder(port)
    who = f"{found.command} (pid {found.pid})" if found and found.pid else (found.command if found else "another program")
    raise PortTaken(
        f"port {port} is held by {who}",
        where=setting,
        hint=f"stop it, or take another port: {setting} = {next_free(port + 1, host)} in headrace.toml "
        f"(or HEADRACE_{setting.upper()})",
    )


def require_ports(wanted: Iterable[tuple[int, str, str]], own_pids: Callable[[], Collection[int]]) -> None:
    """Checks that each port of `wanted` (port, setting, host) is free or held by a process of this project.

    Args:
        own_pids: process ids of this project; called only if a port is taken.

    Raises:
        PortTaken: another program holds a port.
    """
    taken = [(port, setting, host) for port, setting, host in wanted if not is_free(port, host)]
    own = own_pids() if taken else ()
    for port, setting, host in taken:
        found = holder(port)
        if found is not None and found.pid not in own:
            require_free(port, setting, host)


def next_free(start: int, host: str = "127.0.0.1") -> int:
    """The first free port from `start` upwards."""
    return next((port for port in range(start, 65536) if is_free(port, host)), 0)


def take_port(ports: tuple[int, int], reservations: Path, used: Collection[int] = (), host: str = "127.0.0.1") -> int:
    """A free port from `ports` (first, last) that no other process of this project takes at the same moment.

    `used` are ports of known replicas, which may not listen yet. A reservation is a lock file in `reservations`, held until
    this process ends: by then the server listens.

    Raises:
        PortTaken: none is left.
    """
    first, last = ports
    candidates = list(range(first, last + 1))
    random.shuffle(candidates)  # a port just freed rests: a late client of the last replica must not meet another model
    for port in candidates:
        if port not in used and is_free(port, host) and _reserve(reservations, port):
            return port
    raise PortTaken(
        f"no port is free from {first} to {last}",
        where="replica_ports",
        hint="widen replica_ports in headrace.toml, or stop all models: headrace down",
    )


_held: dict[int, object] = {}


def _reserve(folder: Path, port: int) -> bool:
    from filelock import FileLock, Timeout

    if port in _held:
        return False
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"port-{port}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _held[port] = lock  # the lock is let go when the process ends, however it ends
    return True


def release(port: int) -> None:
    """Lets a reservation go, once the server listens or was given up."""
    from filelock import FileLock

    lock = _held.pop(port, None)
    if isinstance(lock, FileLock):
        lock.release()


def _connections() -> list[Any]:
    import psutil

    try:
        return list(psutil.net_connections("tcp"))
    except psutil.AccessDenied:  # macOS shows other users' sockets to root alone
        return []

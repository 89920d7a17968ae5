"""Open connections to a server, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.serving.local_http import Address

TABLE = Path("/proc/net/unix")
"""Unix sockets on Linux. A connection is listed where its client is, with the path that the server bound, also when that runs
in a container."""
OPEN = ("02", "03")
"""States in it of a connection that waits to be accepted, and of one that was; a listener has another."""


def has_connections(address: Address, pid: int | None) -> bool:
    """Whether something on this machine has an open connection to the server at `address`.

    Args:
        address: host and port, or the path of a Unix socket as the server bound it.
        pid: the server's process, where it is known; used where the kernel has no table of all sockets.
    """
    if isinstance(address, Path):
        return _unix_connections(address, pid) > 0
    import psutil

    return any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == address[1] for c in tcp_connections())


def tcp_connections() -> list[Any]:
    """All TCP connections of this machine, as far as this user may see them."""
    import psutil

    try:
        return list(psutil.net_connections("tcp"))
    except psutil.AccessDenied:  # macOS shows other users' sockets to root only
        return []


def _unix_connections(path: Path, pid: int | None) -> int:
    try:
        table = TABLE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _connections_of(path, pid) if pid is not None else 0
    lines = (line.split(maxsplit=7) for line in table.splitlines()[1:])
    return sum(len(parts) == 8 and parts[5] in OPEN and parts[7] == str(path) for parts in lines)


def _connections_of(path: Path, pid: int) -> int:
    """As above, where the table is missing: all sockets of this name but the one that listens."""
    import psutil

    try:
        named = [found for found in psutil.Process(pid).net_connections("unix") if str(found.laddr) == str(path)]
    except psutil.Error:
        return 0
    return max(0, len(named) - 1)

"""Which user of this machine holds the other end of a connection, as the kernel tells it."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
ESTABLISHED = "01"


def is_own(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Whether the process that connected from `client` to `server` belongs to this user or to root.

    True where the system has no such table (macOS): the session's secret is then the only protection.
    """
    return uid_of(client, server) in (0, os.getuid()) if is_known() else True


def is_known() -> bool:
    """Whether this system says whose a connection is."""
    return any(table.exists() for table in TABLES)


def uid_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The user id of the socket that is bound to `client` and connected to `server`; None if there is none.

    A socket that its process has closed is listed as root's, without an inode: it does not count.
    """
    wanted = {(_hexadecimal(*client, v6), _hexadecimal(*server, v6)) for v6 in (False, True)}
    for table in TABLES:
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        for fields in map(str.split, lines):
            if (fields[1], fields[2]) in wanted and fields[3] == ESTABLISHED and fields[9] != "0":
                return int(fields[7])
    return None


def _hexadecimal(host: str, port: int, v6: bool) -> str:
    """As in the tables: each group of four bytes in the machine's own order."""
    address = ipaddress.ip_address(host)
    packed = address.packed
    if v6 and address.version == 4:
        packed = bytes(10) + b"\xff\xff" + packed
    words = [int.from_bytes(packed[at : at + 4], "little") for at in range(0, len(packed), 4)]
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"

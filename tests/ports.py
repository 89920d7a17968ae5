"""Ports for tests: no two tests use the same ports at the same time, also in other processes, workers and checkouts."""

from __future__ import annotations

import contextlib
import getpass
import itertools
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from headrace.serving.replicas.ports import is_free

BLOCK = 100
STARTS = range(11_000, 20_900, BLOCK)
"""Below the ephemeral ports, where a connection of another program could take one, and apart from the default ports of replicas
and benchmarks."""
LOCKS = Path(tempfile.gettempdir()) / f"headrace-test-ports-{getpass.getuser()}"


@contextmanager
def lease() -> Iterator[range]:
    """Reserves a block of free ports while the block of code runs.

    A lock file, which the kernel releases when this process ends, keeps other processes away. Blocks are chosen at random, so
    that a block is not used again at once.
    """
    LOCKS.mkdir(exist_ok=True)
    for start in random.sample(STARTS, len(STARTS)):
        lock = FileLock(LOCKS / f"{start}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            ports = range(start, start + BLOCK)
            if all(is_free(port) for port in ports):
                yield ports
                return
        finally:
            lock.release()
    raise RuntimeError(f"no block of {BLOCK} ports is free from {STARTS[0]} to {STARTS[-1]}")


def free_ports(count: int) -> list[int]:
    """Returns different ports that are free at this moment; this process returns the same port again as late as possible."""
    return list(itertools.islice((port for port in _own() if is_free(port)), count))


def free_port() -> int:
    return free_ports(1)[0]


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Listens on `port` as another program would, also while old connections are in TIME_WAIT."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        yield


_kept = contextlib.ExitStack()


@cache
def _own() -> Iterator[int]:
    """Cycles through the ports of a block that this process keeps until it ends."""
    return itertools.cycle(_kept.enter_context(lease()))

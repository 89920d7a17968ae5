"""Ports for tests: no two tests get the same ones at the same time, in whatever process, worker or checkout they run."""

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
"""Below the ports that the kernel hands out by itself: there a late connection of another program could take one. And away
from the ports that replicas and benchmarks take by default."""
LOCKS = Path(tempfile.gettempdir()) / f"headrace-test-ports-{getpass.getuser()}"


@contextmanager
def lease() -> Iterator[range]:
    """A block of ports that nobody listens on, for as long as the block of code runs.

    A lock file keeps it from other processes; the kernel lets it go when this one dies. Blocks are taken at random, so that
    one just freed rests.
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
    """Ports that nobody listens on at this moment, all different; this process hands each out again as late as it can."""
    return list(itertools.islice((port for port in _own() if is_free(port)), count))


def free_port() -> int:
    return free_ports(1)[0]


@contextmanager
def taken(port: int) -> Iterator[None]:
    """Another program listens on `port`; what earlier connections left there in TIME_WAIT does not keep it away."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        yield


_kept = contextlib.ExitStack()


@cache
def _own() -> Iterator[int]:
    """The ports of a block that this process keeps until it ends, in turn and without end."""
    return itertools.cycle(_kept.enter_context(lease()))

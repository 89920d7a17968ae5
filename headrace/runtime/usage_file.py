"""Counters in a file that outlives its process, one file a process. Shared; light.

A file is a row of records of `RECORD` bytes: three counters, the CRC-32 and length of the key, and the key: day, tenant and
model. A record whose CRC does not fit counts for nothing, and the others for all they hold.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import uuid
import zlib
from pathlib import Path
from typing import NamedTuple

RECORD = 512
COUNTERS = struct.Struct("<3Q")
CHECK = struct.Struct("<IH")
KEY_AT = COUNTERS.size + CHECK.size
GROWTH = 128
"""Records by which a file grows."""
LONGEST_NAME = 200
"""Bytes of a tenant's or model's name; a longer one is cut."""
PATTERN = "counters-*.bin"


class UsageRow(NamedTuple):
    """What one tenant was given by one model on one day, UTC, as `2026-11-24`."""

    day: str
    tenant: str
    model: str
    requests: int
    rows: int
    tokens: int


class CounterFile:
    """One file, locked from before anybody can see it until it is closed or its process ends."""

    def __init__(self, folder: Path, day: str) -> None:
        self._day = day
        self._places: dict[tuple[str, str], int] = {}
        self._size = 0
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        name = f"counters-{uuid.uuid4().hex}.bin"
        beside = folder / f".{name}.part"
        self._descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._grow()
            beside.rename(folder / name)
        except OSError:
            os.close(self._descriptor)
            beside.unlink(missing_ok=True)
            raise

    def add(self, tenant: str, model: str, requests: int, rows: int, tokens: int) -> None:
        """
        Raises:
            OSError: there is no space for a further record.
        """
        at = self._places.get((tenant, model))
        if at is None:
            at = self._place(tenant, model)
        counters = self._counters
        counters[at] += requests
        counters[at + 1] += rows
        counters[at + 2] += tokens

    def sync(self) -> None:
        # Not msync: mmap.flush() would hold Python's lock while the disk works.
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sync()
        self._unmap()
        os.close(self._descriptor)

    def _place(self, tenant: str, model: str) -> int:
        """Where the record's counters lie, in words of 8 bytes."""
        start = len(self._places) * RECORD
        if start + RECORD > self._size:
            self._grow()
        assert self._map is not None
        key = "\0".join([self._day, _cut(tenant), _cut(model)]).encode()
        self._map[start + KEY_AT : start + KEY_AT + len(key)] = key
        # Last, so that a record is whole or none.
        CHECK.pack_into(self._map, start + COUNTERS.size, zlib.crc32(key), len(key))
        place = self._places[tenant, model] = start // 8
        return place

    def _grow(self) -> None:
        size = self._size + GROWTH * RECORD
        os.posix_fallocate(self._descriptor, 0, size)  # space that is promised: a full disk shows here, not as SIGBUS
        self._unmap()
        self._map = mmap.mmap(self._descriptor, size)
        self._counters = memoryview(self._map).cast("Q")
        self._size = size

    def _unmap(self) -> None:
        if self._map is not None:
            self._counters.release()
            self._map.close()
            self._map = None


def read_counters(path: Path) -> list[UsageRow]:
    """The whole records of a file; none of one that is gone."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    found = []
    for start in range(0, len(content) - RECORD + 1, RECORD):
        counts = COUNTERS.unpack_from(content, start)
        checksum, length = CHECK.unpack_from(content, start + COUNTERS.size)
        key = content[start + KEY_AT : start + KEY_AT + length]
        if length and zlib.crc32(key) == checksum and any(counts):
            day, tenant, model = key.decode().split("\0")
            found.append(UsageRow(day, tenant, model, *counts))
    return found


def _cut(name: str) -> str:
    return name.replace("\0", "").encode()[:LONGEST_NAME].decode(errors="ignore")

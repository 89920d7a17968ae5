"""Usage counters in a memory-mapped file that outlives its process, one file per process. Light.

A file is a sequence of records of `RECORD` bytes: three counters, CRC-32 and length of the key, the key (day, tenant and
model), and at the end a fourth counter, which is 0 in files of earlier versions. A record with a wrong CRC is ignored; the
others stay valid.
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
LAST_COUNTER = struct.Struct("<Q")
CHECK = struct.Struct("<IH")
KEY_AT = COUNTERS.size + CHECK.size
LAST_AT = RECORD // 8 - 1
"""Place of the last counter in a record, in words of 8 bytes."""
GROWTH = 128
"""Records by which a file grows."""
MAX_NAME_BYTES = 200
"""Bytes of a tenant's or model's name; a longer one is truncated."""
PATTERN = "counters-*.bin"


class UsageRow(NamedTuple):
    """Usage of one model by one tenant on one UTC day, written as `2026-11-24`."""

    day: str
    tenant: str
    model: str
    requests: int
    rows: int
    tokens: int
    """Generated tokens."""
    prompt_tokens: int = 0


class UsageFile:
    """A new usage file in `folder`, locked before it is visible and until it is closed or its process ends."""

    def __init__(self, folder: Path, day: str) -> None:
        self._day = day
        self._offsets: dict[tuple[str, str], int] = {}
        self._size = 0
        self._map: mmap.mmap | None = None
        folder.mkdir(parents=True, exist_ok=True)
        name = f"counters-{uuid.uuid4().hex}.bin"
        temporary = folder / f".{name}.part"
        self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._grow()
            temporary.rename(folder / name)
            parent = os.open(folder, os.O_RDONLY)
            os.fsync(parent)  # the rename survives a power failure
            os.close(parent)
        except OSError:
            os.close(self._descriptor)
            temporary.unlink(missing_ok=True)
            raise

    def add(self, tenant: str, model: str, requests: int, rows: int, tokens: int, prompt_tokens: int = 0) -> None:
        """Adds to the counters of a tenant and model.

        Raises:
            OSError: the disk has no space for a new record.
        """
        at = self._offsets.get((tenant, model))
        if at is None:
            at = self._new_record(tenant, model)
        counters = self._counters
        counters[at] += requests
        counters[at + 1] += rows
        counters[at + 2] += tokens
        counters[at + LAST_AT] += prompt_tokens

    def sync(self) -> None:
        # Not mmap.flush(), which holds the GIL while the disk writes.
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sync()
        self._unmap()
        os.close(self._descriptor)

    def _new_record(self, tenant: str, model: str) -> int:
        """Appends a record and returns the offset of its counters, in words of 8 bytes."""
        start = len(self._offsets) * RECORD
        if start + RECORD > self._size:
            self._grow()
        assert self._map is not None
        key = "\0".join([self._day, _truncated(tenant), _truncated(model)]).encode()
        self._map[start + KEY_AT : start + KEY_AT + len(key)] = key
        # Written last: a record without it is ignored.
        CHECK.pack_into(self._map, start + COUNTERS.size, zlib.crc32(key), len(key))
        offset = self._offsets[tenant, model] = start // 8
        return offset

    def _grow(self) -> None:
        size = self._size + GROWTH * RECORD
        os.posix_fallocate(
            self._descriptor, 0, size
        )  # reserves the space: a full disk is an error here instead of a SIGBUS later
        self._unmap()
        self._map = mmap.mmap(self._descriptor, size)
        self._counters = memoryview(self._map).cast("Q")
        self._size = size

    def _unmap(self) -> None:
        if self._map is not None:
            self._counters.release()
            self._map.close()
            self._map = None


def read_usage_file(path: Path) -> list[UsageRow]:
    """Returns the valid records of a file; none if it was removed."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    found = []
    for start in range(0, len(content) - RECORD + 1, RECORD):
        counts = COUNTERS.unpack_from(content, start)
        checksum, length = CHECK.unpack_from(content, start + COUNTERS.size)
        key = content[start + KEY_AT : start + KEY_AT + length]
        counts += LAST_COUNTER.unpack_from(content, start + 8 * LAST_AT)
        if length and zlib.crc32(key) == checksum and any(counts):
            day, tenant, model = key.decode().split("\0")
            found.append(UsageRow(day, tenant, model, *counts))
    return found


def _truncated(name: str) -> str:
    return name.replace("\0", "").encode()[:MAX_NAME_BYTES].decode(errors="ignore")

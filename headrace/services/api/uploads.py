"""Writes a request's body to a file, within a limit; an incomplete body leaves nothing behind."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect

from headrace.files import is_disk_full
from headrace.runtime.http import CLOSE, Refused
from headrace.runtime.http_messages import TrackedRequest
from headrace.services.api.batch_store import BatchStore

WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class Upload:
    """A complete body, in `folder/input`."""

    folder: Path
    size: int
    sha256: str


@asynccontextmanager
async def receive(
    request: TrackedRequest, store: BatchStore, max_bytes: int, idle_seconds: float, check: Callable[[int, int], None]
) -> AsyncIterator[Upload]:
    """Gives the body as a file while the block runs; its folder is removed afterwards unless the block has moved it.

    Args:
        max_bytes: largest accepted body.
        idle_seconds: a body without new data for this long is refused.
        check: called with the bytes so far and the bytes that are announced (0 if they are not), before the upload begins
            and before each piece is written; it raises `Refused` if too little room is left for them.

    Raises:
        Refused: 408, 413, 422 (an empty body) or 507 (the disk is full).
        ClientDisconnect: the client disconnected before the end.
    """
    declared = request.headers.get("content-length", "")
    announced = int(declared) if declared.isdigit() else 0
    if announced > max_bytes:
        raise _too_large(max_bytes)
    check(0, announced)
    folder = await asyncio.to_thread(store.incoming)
    try:
        yield await _to_file(_pieces(request, max_bytes, idle_seconds), folder, lambda size: check(size, announced))
    except OSError as error:
        if is_disk_full(error) or error.errno == errno.EFBIG:
            raise Refused(507, "disk_full", "no space is left for this file; nothing of it is kept", CLOSE) from None
        raise
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _to_file(pieces: AsyncIterator[bytes], folder: Path, check: Callable[[int], None]) -> Upload:
    size, digest = 0, hashlib.sha256()
    with (folder / "input").open("wb", buffering=0) as handle:
        async for piece in pieces:
            size += len(piece)
            check(size)
            await asyncio.to_thread(_write, handle, digest, piece)
        await asyncio.to_thread(os.fsync, handle.fileno())
    if size == 0:
        raise Refused(422, "no_rows", "the body is empty")
    return Upload(folder, size, digest.hexdigest())


def _write(handle: Any, digest: Any, piece: bytes) -> None:
    digest.update(piece)
    view = memoryview(piece)
    while view:  # an unbuffered write may write only a part
        view = view[handle.write(view) :]


async def _pieces(request: TrackedRequest, max_bytes: int, idle_seconds: float) -> AsyncIterator[bytes]:
    """Yields the body in pieces of about a mebibyte."""
    held, size, more = [], 0, True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), idle_seconds)
        except TimeoutError:
            raise Refused(408, "request_timeout", f"no data arrived for {idle_seconds:g} s", CLOSE) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        held.append(message.get("body", b""))
        size += len(held[-1])
        if size > max_bytes:
            raise _too_large(max_bytes)
        if sum(map(len, held)) >= WRITE_BYTES or not more:
            yield b"".join(held)
            held = []


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, "too_large", f"the file exceeds {max_bytes} bytes", CLOSE, limit_bytes=max_bytes)

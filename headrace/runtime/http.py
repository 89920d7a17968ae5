"""HTTP for every room: refusals in one JSON shape, request ids, and bodies that are never read beyond their limit."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import re
import types
from collections.abc import Callable, Generator
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from headrace.runtime import json_pieces
from headrace.runtime.http_call import Answer

BODY_LIMIT_BYTES = int(os.environ.get("HEADRACE_BODY_LIMIT_BYTES", 16 * 1024 * 1024))
HELD_A_BYTE = 5
"""A body of JSON and its values, for each of its bytes: a list of digits has two bytes for a pointer of eight."""
BODY_SECONDS = 30.0
"""A client that sends its body more slowly is refused, so that it holds no memory."""
CLOSE = {"connection": "close"}
"""For a refusal amid a body, of which the rest is thrown away."""
_OWN = os.urandom(8).hex()
_numbers = itertools.count(int.from_bytes(os.urandom(6), "big"))
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Refused(Exception):
    """An answer that is no prediction. `code` is for programs, `message` for people, `details` stand beside them."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.details = details

    def to_response(self, request_id: str) -> Answer:
        body = {"error": {"code": self.code, "message": self.message, **self.details}, "request_id": request_id}
        return to_json(body, self.status, self.headers)


def overloaded(seconds: float = 1.0) -> Refused:
    """Too much waits already; it may be less after `seconds`."""
    message = "too many requests at once; try again"
    return Refused(503, "overloaded", message, {"retry-after": str(max(1, math.ceil(seconds)))})


def to_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(msgspec.json.encode(body), status, headers, "application/json")


def header(request: Request, name: bytes) -> str:
    """One header as text, empty when absent."""
    return str(header_bytes(request, name), "latin-1")


def header_bytes(request: Request, name: bytes) -> bytes:
    """One header, empty when absent."""
    given: dict[bytes, bytes] = request.state.given
    return given.get(name, b"")


def request_id_of(request: Request) -> str:
    """The client's `x-request-id` when it is short and plain (it goes into logs), else a fresh one."""
    given = header(request, b"x-request-id")
    return given if given and SANE_ID.fullmatch(given) else _fresh_id()


def _fresh_id() -> str:
    """32 hex digits: this process's own 16, and a number. Randomness for each request would be a system call."""
    return f"{_OWN}{next(_numbers):016x}"


def media_type(request: Request) -> str:
    """What the body says that it is, without parameters."""
    return header(request, b"content-type").partition(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Refuses (415) whatever does not say that it is plain JSON."""
    if header_bytes(request, b"content-type") == b"application/json" and b"content-encoding" not in request.state.given:
        return
    kind = media_type(request)
    if kind != "application/json":
        raise Refused(415, "unsupported_media_type", f"expected content-type application/json, got {kind or 'none'}")
    require_plain(request)


def require_plain(request: Request) -> None:
    """Refuses (415) a compressed body."""
    encoding = header(request, b"content-encoding")
    if encoding not in ("", "identity"):
        raise Refused(415, "unsupported_media_type", f"expected no content-encoding, got {encoding}")


async def read_body(request: Request, hold: Callable[[int], None]) -> bytes:
    """The whole body; `hold` is told the size of each piece and may refuse it.

    Raises:
        Refused: 413 as soon as it is known to exceed `BODY_LIMIT_BYTES` (the rest stays unread), 408 when it comes too slowly.
    """
    declared = header(request, b"content-length")
    if declared.isdigit() and int(declared) > BODY_LIMIT_BYTES:
        raise _too_large()
    receiving: Any = request.receive()
    try:
        waited = receiving.send(None)
    except StopIteration as here:  # as most often: the body came with its headers, and needs no timer
        message: Message = here.value
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > BODY_LIMIT_BYTES:
                raise _too_large() from None
            hold(len(body))
            return body
        rest = _read_pieces(request, message, hold)
    else:
        rest = _read_rest(request, receiving, waited, hold)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await rest
    except TimeoutError:
        raise Refused(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from None


async def read_json_body(request: Request, hold: Callable[[int], None]) -> bytes:
    """A body whose values wait for their turn too: `hold` is told of their memory before they are read.

    Raises:
        Refused: as `read_body`.
    """
    body = await read_body(request, hold)
    hold((HELD_A_BYTE - 1) * len(body))
    return body


async def _read_rest(request: Request, receiving: Any, waited: Any, hold: Callable[[int], None]) -> bytes:
    return await _read_pieces(request, await _go_on(receiving, waited), hold)


@types.coroutine
def _go_on(coroutine: Any, waited: Any) -> Generator[Any, Any, Any]:
    """Awaits the rest of a coroutine that was begun by hand and waits for `waited`."""
    while True:
        try:
            sent = yield waited
        except BaseException as error:
            step, given = coroutine.throw, error
        else:
            step, given = coroutine.send, sent
        try:
            waited = step(given)
        except StopIteration as done:
            return done.value


async def _read_pieces(request: Request, message: Message, hold: Callable[[int], None]) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > BODY_LIMIT_BYTES:
            raise _too_large()
        hold(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await request.receive()


def parse_json(body: bytes) -> Any:
    """Plain values.

    Raises:
        Refused: 400 when it is no JSON (NaN and Infinity are none either) or nested too deeply.
    """
    try:
        return json_pieces.decode(body)
    except RecursionError:
        raise Refused(400, "bad_json", "the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, "bad_json", f"the body is no valid JSON: {error}") from None


def _too_large() -> Refused:
    return Refused(413, "too_large", f"the body exceeds {BODY_LIMIT_BYTES} bytes", CLOSE, limit_bytes=BODY_LIMIT_BYTES)

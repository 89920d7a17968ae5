"""HTTP helpers of replicas and the API server: JSON errors, request ids, and bodies that are never read beyond their limit."""

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
from starlette.requests import ClientDisconnect
from starlette.types import Message

from headrace.runtime import json_pieces
from headrace.runtime.http_messages import BytesResponse, TrackedRequest

BODY_LIMIT_BYTES = int(os.environ.get("HEADRACE_BODY_LIMIT_BYTES", 16 * 1024 * 1024))
MEMORY_PER_BODY_BYTE = 5
"""Memory for a JSON body and its values, per byte of the body: a digit and its comma become a pointer of eight bytes."""
BODY_SECONDS = 30.0
"""A client that sends its body more slowly is refused, so that it holds no memory."""
CLOSE = {"connection": "close"}
"""Header of a refusal that is sent before the whole body was read."""
VALID_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""Ids that clients may choose: short and plain, because they are written to logs."""
_PROCESS_ID = os.urandom(8).hex()
_numbers = itertools.count(int.from_bytes(os.urandom(6), "big"))


class Refused(Exception):
    """An error response. `code` is for programs, `message` for people; `details` are further JSON fields beside them."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        self.details = details

    def to_response(self, request_id: str) -> BytesResponse:
        body = {"error": {"code": self.code, "message": self.message, **self.details}, "request_id": request_id}
        return to_json(body, self.status, self.headers)


def overloaded(seconds: float = 1.0) -> Refused:
    """Makes the 503 for a server whose queue is full; `seconds` until a retry may succeed."""
    message = "too many requests at once; try again"
    return Refused(503, "overloaded", message, {"retry-after": str(max(1, math.ceil(seconds)))})


def invalid_field(path: str, expected: str, got: str) -> Refused:
    """Makes the 422 for a request that breaks the contract; `path` names the field, for example `instances.3.distance`."""
    message = f"{path}: expected {expected}, got {got}"
    return Refused(422, "contract_violation", message, path=path, expected=expected, got=got)


def to_json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> BytesResponse:
    return BytesResponse(msgspec.json.encode(body), status, headers, "application/json")


def header(request: TrackedRequest, name: bytes) -> str:
    """Returns one header as text, empty when absent."""
    return str(request.header_bytes.get(name, b""), "latin-1")


def request_id_of(request: TrackedRequest) -> str:
    """Returns the client's `x-request-id` if it is a `VALID_ID`, else a new id."""
    given = header(request, b"x-request-id")
    return given if given and VALID_ID.fullmatch(given) else _new_id()


def _new_id() -> str:
    """Returns 32 hex digits: 16 of this process and a counter. Random bytes for each request would be a system call."""
    return f"{_PROCESS_ID}{next(_numbers):016x}"


def media_type(request: TrackedRequest) -> str:
    """Returns the declared type of the body, in lower case and without parameters."""
    return header(request, b"content-type").partition(";")[0].strip().lower()


def require_json(request: TrackedRequest) -> None:
    """Refuses a body that is not declared as uncompressed JSON.

    Raises:
        Refused: 415.
    """
    headers = request.header_bytes
    if headers.get(b"content-type") == b"application/json" and b"content-encoding" not in headers:
        return
    require_media_type(request, "application/json")


def require_media_type(request: TrackedRequest, *allowed: str, headers: dict[str, str] | None = None) -> str:
    """Returns the body's media type, which has to be one of `allowed`, uncompressed.

    Raises:
        Refused: 415, with `headers`.
    """
    found = media_type(request)
    if found not in allowed:
        message = f"expected content-type {' or '.join(allowed)}, got {found[:100] or 'none'}"
        raise Refused(415, "unsupported_media_type", message, headers)
    require_uncompressed(request, headers)
    return found


def require_uncompressed(request: TrackedRequest, headers: dict[str, str] | None = None) -> None:
    """Refuses a compressed body.

    Raises:
        Refused: 415, with `headers`.
    """
    encoding = header(request, b"content-encoding")
    if encoding not in ("", "identity"):
        raise Refused(415, "unsupported_media_type", f"expected no content-encoding, got {encoding[:100]}", headers)


def _ignore(_: int) -> None:
    """Reserves no memory."""


async def read_body(request: TrackedRequest, reserve: Callable[[int], None] = _ignore, limit_bytes: int | None = None) -> bytes:
    """Reads the whole body; `reserve` is called with the size of each chunk and may refuse it.

    Args:
        limit_bytes: `BODY_LIMIT_BYTES` by default.

    Raises:
        Refused: 413 as soon as the body is known to exceed the limit (the rest stays unread), 408 when it arrives too slowly.
        ClientDisconnect: the client disconnected before its end.
    """
    limit_bytes = BODY_LIMIT_BYTES if limit_bytes is None else limit_bytes
    declared = header(request, b"content-length")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    receiving: Any = request.receive()
    try:
        waited = receiving.send(None)
    except StopIteration as here:  # the usual case: the body arrived with its headers, and needs no timer
        message: Message = here.value
        if message["type"] == "http.request" and not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes) from None
            reserve(len(body))
            return body
        rest = _read_chunks(request, message, reserve, limit_bytes)
    else:
        rest = _read_rest(request, receiving, waited, reserve, limit_bytes)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await rest
    except TimeoutError:
        raise Refused(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from None


async def read_json_body(request: TrackedRequest, reserve: Callable[[int], None]) -> bytes:
    """Reads a JSON body, and reserves the memory of its values before they are parsed.

    Raises:
        Refused: as `read_body`.
    """
    body = await read_body(request, reserve)
    reserve((MEMORY_PER_BODY_BYTE - 1) * len(body))
    return body


async def _read_rest(
    request: TrackedRequest, receiving: Any, waited: Any, reserve: Callable[[int], None], limit_bytes: int
) -> bytes:
    return await _read_chunks(request, await _resume(receiving, waited), reserve, limit_bytes)


@types.coroutine
def _resume(coroutine: Any, waited: Any) -> Generator[Any, Any, Any]:
    """Awaits the rest of a coroutine that was started by hand and waits for `waited`."""
    while True:
        try:
            sent = yield waited
        except BaseException as error:
            step, value = coroutine.throw, error
        else:
            step, value = coroutine.send, sent
        try:
            waited = step(value)
        except StopIteration as done:
            return done.value


async def _read_chunks(request: TrackedRequest, message: Message, reserve: Callable[[int], None], limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        reserve(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)
        message = await request.receive()


def parse_json(body: bytes) -> Any:
    """Parses JSON into plain Python values.

    Raises:
        Refused: 400, the JSON is invalid (NaN and Infinity are) or nested too deeply.
    """
    try:
        return json_pieces.decode(body)
    except RecursionError:
        raise Refused(400, "bad_json", "the JSON is nested too deeply") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(400, "bad_json", f"the body is not valid JSON: {error}") from None


def _too_large(limit_bytes: int) -> Refused:
    return Refused(413, "too_large", f"the body exceeds {limit_bytes} bytes", CLOSE, limit_bytes=limit_bytes)


def openai_model(name: str, loaded_at: int) -> dict[str, Any]:
    """Returns a text-generating model as OpenAI's API lists it; `loaded_at` is the time of loading, in seconds since 1970."""
    return {"id": name, "object": "model", "created": loaded_at, "owned_by": "headrace"}


def model_list(models: list[dict[str, Any]], openai_models: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the body of `GET /v1/models`: Headrace's list beside OpenAI's."""
    return {"models": models, "object": "list", "data": openai_models}

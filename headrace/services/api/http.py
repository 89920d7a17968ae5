"""What the desk's rooms read from a request. Refusals have the shape of the replicas'."""

from __future__ import annotations

import asyncio
import os

from starlette.requests import ClientDisconnect, Request

from headrace.runtime.http import CLOSE, SANE_ID, Refused

MOST_BYTES = 4 * 1024 * 1024
"""Of a body that is read into memory."""
BODY_SECONDS = 30.0


def request_id_of(request: Request) -> str:
    """The client's `x-request-id` when it is short and plain (it goes into logs), else a fresh one."""
    given = request.headers.get("x-request-id", "")
    return given if SANE_ID.fullmatch(given) else os.urandom(16).hex()


def media_type(request: Request) -> str:
    """What the body says that it is, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_type(request: Request, *kinds: str) -> str:
    """
    Raises:
        Refused: 415, the body is of another kind, or compressed.
    """
    found, encoding = media_type(request), request.headers.get("content-encoding", "identity")
    if found not in kinds:
        wanted = " or ".join(kinds)
        raise Refused(415, "unsupported_media_type", f"expected content-type {wanted}, got {found[:100] or 'none'}", CLOSE)
    if encoding != "identity":
        raise Refused(415, "unsupported_media_type", f"expected no content-encoding, got {encoding[:100]}", CLOSE)
    return found


async def read_body(request: Request) -> bytes:
    """The whole body.

    Raises:
        Refused: 413, it is too large; 408, it comes too slowly.
        ClientDisconnect: the client went away amid it.
    """
    body, more = b"", True
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise Refused(413, "too_large", f"the body exceeds {MOST_BYTES} bytes", CLOSE, limit_bytes=MOST_BYTES)
    except TimeoutError:
        raise Refused(408, "request_timeout", f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from None
    return body


def violation(path: str, expected: str, got: str) -> Refused:
    """A refusal (422) that names the field at fault."""
    message = f"{path}: expected {expected}, got {got}"
    return Refused(422, "contract_violation", message, path=path, expected=expected, got=got)

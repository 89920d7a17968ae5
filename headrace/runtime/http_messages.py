"""Requests and responses of Headrace's servers: Starlette's, without what a small prediction cannot afford."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.runtime.token_verifier import OPEN_ACCESS, Caller

CURRENT_REQUEST: ContextVar[TrackedRequest] = ContextVar("request")
"""The request that the running task answers."""
TRANSPORT_EXTENSION = "headrace.transport"
"""Key in a request's `extensions` for the transport of a replica's server, on which `begin` and `end` mark a response."""
LINGER_SECONDS = 2.0
"""Longest time that a connection stays open after its last response to read the rest of the request's body."""
LINGER_BYTES = 32 * 1024 * 1024
"""Largest rest of a body that is read and dropped in that time."""


class TrackedRequest(Request):
    """A request with its id, its caller, and what is counted and logged about it."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.started = time.perf_counter()
        self.header_bytes: dict[bytes, bytes] = dict(scope["headers"])
        """Header values by lower-case name, undecoded."""
        self.request_id = ""
        self.caller: Caller = OPEN_ACCESS
        self.tenant = "none"
        """The caller's tenant, set once the token is verified."""
        self.route = "none"
        self.code = ""
        """Error code of a refused request."""
        self.spent: dict[str, int] = {}
        """Rows taken from the caller's quota, by day."""
        self.reserved: dict[tuple[str, str], int] = {}
        """Tokens taken from the caller's limits, by unit and period; the rest is returned when the request ends."""
        self.used_tokens = 0
        """Tokens of prompts and of generated texts so far, if any are reserved."""
        self.is_worked_on = False
        """Whether the model has begun to work on rows that were taken from a quota."""
        self.is_counted = False
        """Whether the request is counted as usage already; a stream counts once, though its tokens come one by one."""


class BytesResponse(Response):
    """A response whose body is complete; a header `connection: close` makes it the last one of its connection."""

    is_last = False

    def __init__(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, media_type: str = "") -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", media_type.encode("latin-1"))]
        if headers:
            self.is_last = headers.get("connection") == "close"
            self.raw_headers += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.is_last:
            await self._send_and_drain(receive, send)
            return
        transport = scope.get("extensions", {}).get(TRANSPORT_EXTENSION)
        if transport is None:
            await self._send(send)
            return
        transport.begin()
        try:
            await self._send(send)
        finally:
            transport.end()

    async def _send(self, send: Send, is_end: bool = True) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": not is_end})

    async def _send_and_drain(self, receive: Receive, send: Send) -> None:
        """Sends the response, then reads what the client still sends before the connection closes.

        A connection that is closed while a body arrives is reset, and then a load balancer loses the response.
        """
        await self._send(send, is_end=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await _drain(receive)
        await send({"type": "http.response.body", "body": b""})


async def _drain(receive: Receive) -> None:
    size, more = 0, True
    while more and size < LINGER_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)

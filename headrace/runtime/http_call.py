"""One request on its way through a replica, and its answer: Starlette's, without what a small prediction cannot afford."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.runtime.token_verifier import EVERYBODY, Caller

CURRENT: ContextVar[Call] = ContextVar("call")
"""The request that the running task answers."""
WHOLE = "headrace.whole"
"""Of a request's `extensions`, given by a replica's own server: the transport, to be told where an answer begins and ends."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 32 * 1024 * 1024
"""How long, and for how much of a body that nobody reads, a connection outlives its last answer."""


class Call(Request):
    """A request with what the app knows of it. Routes find it all in `request.state` too."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        self.started = time.perf_counter()
        self.given: dict[bytes, bytes] = dict(scope["headers"])
        """Headers, as bare as they came."""
        self.request_id = ""
        self.caller: Caller = EVERYBODY
        self.tenant = "none"
        """Of the caller, once the token was checked."""
        self.route = "none"
        self.code = ""
        """Of a refusal."""
        self.spent = 0
        """Rows taken from the caller's quota."""
        self.is_counted = False
        """Whether the request has been metered; it is once, though a stream's tokens come one by one."""

    @property
    def state(self) -> Any:
        return self


class Answer(Response):
    """A whole body with its status and headers; `connection: close` among them makes it the last one of its connection."""

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
            await self._take_leave(receive, send)
            return
        transport = scope.get("extensions", {}).get(WHOLE)
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

    async def _take_leave(self, receive: Receive, send: Send) -> None:
        """The whole answer at once; the connection ends when its client has stopped sending, or sends for too long.

        One that is closed under a body is reset, and then a balancer loses the answer that is on its way.
        """
        await self._send(send, is_end=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await _throw_away(receive)
        await send({"type": "http.response.body", "body": b""})


async def _throw_away(receive: Receive) -> None:
    size, more = 0, True
    while more and size < LINGER_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)

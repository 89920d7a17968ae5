"""uvicorn's connection, but that what is written during one turn of the event loop leaves at its end.

An answer's head and body become one system call and one packet, and the answers of a turn leave together: a client that the
first has woken takes the others too, which for small models saves a fifth of a request's cost. A whole answer to a request
that is alone leaves at once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Collection
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.runtime.http_call import WHOLE

HELD_BYTES = 64 * 1024
"""That one connection holds at most: more leaves at once, and is never copied to be joined."""
HELD_SECONDS = 0.001
"""An answer that waits for longer leaves as soon as the next one of its turn is ready."""
KEEP_ALIVE_SECONDS = 75
"""Longer than a balancer keeps an idle connection, so that it never sends into one that is being closed."""


class Outbox:
    """The connections that hold something to send. Called from the event loop."""

    def __init__(self) -> None:
        self._holding: list[HeldWrites] = []
        self._since = 0.0

    def add(self, transport: HeldWrites) -> None:
        now = time.monotonic()
        if self._holding and now - self._since > HELD_SECONDS:
            self.send()
        if not self._holding:
            self._since = now
            asyncio.get_running_loop().call_soon(self.send)
        self._holding.append(transport)

    def send(self) -> None:
        holding, self._holding = self._holding, []
        for transport in holding:
            transport.send()


class HeldWrites:
    """A transport whose writes wait for the outbox, in their order."""

    __slots__ = ("_held", "_is_whole", "_outbox", "_requests", "_transport")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox, requests: Collection[Any]) -> None:
        """`requests`: those that the server works on."""
        self._transport = transport
        self._outbox = outbox
        self._requests = requests
        self._held = b""
        self._is_whole = False

    def write(self, data: bytes) -> None:
        if len(self._held) + len(data) > HELD_BYTES:
            self.send()
            self._transport.write(data)
        elif self._held:
            self._held += data
        elif data:
            self._held = data
            if not self._is_whole:
                self._outbox.add(self)

    def begin(self) -> None:
        """What is written until `end` is one answer."""
        self.send()
        self._is_whole = True

    def end(self) -> None:
        self._is_whole = False
        if len(self._requests) == 1:
            self.send()
        elif self._held:
            self._outbox.add(self)

    def send(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self.send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """What uvicorn keeps for each connection."""

    def __init__(self, outbox: Outbox, **given: Any) -> None:
        super().__init__(**given)
        self._outbox = outbox

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, HeldWrites(transport, self._outbox, self.tasks))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {WHOLE: self.transport}  # type: ignore[dict-item]  # for code of this process alone


def server_config(app: ASGIApp) -> uvicorn.Config:
    """How a replica listens, but for where."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=cast(type[Connection], functools.partial(Connection, Outbox())),  # called for each connection
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks for the client's address, and each request would pay for it
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )

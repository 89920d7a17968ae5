"""uvicorn's connection with buffered writes, which are sent at the end of an iteration of the event loop.

Headers and body of a response become one system call and one packet, and the responses of an iteration are sent together: a
client that wakes up for the first one reads the others too, which saves a fifth of a small request's cost. The
response to the server's only current request is sent at once.
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

from headrace.runtime.http_messages import TRANSPORT_EXTENSION

BUFFER_BYTES = 64 * 1024
"""Most bytes that a connection buffers; larger data is sent at once, without copying it."""
BUFFER_SECONDS = 0.001
"""Data that was buffered for longer is sent as soon as the next response of the iteration is ready."""
KEEP_ALIVE_SECONDS = 75
"""Longer than a load balancer keeps an idle connection, so that it never sends into one that is being closed."""


class PendingWrites:
    """Connections with buffered data. Called from the event loop."""

    def __init__(self) -> None:
        self._connections: list[BufferedTransport] = []
        self._since = 0.0

    def add(self, transport: BufferedTransport) -> None:
        now = time.monotonic()
        if self._connections and now - self._since > BUFFER_SECONDS:
            self.send()
        if not self._connections:
            self._since = now
            asyncio.get_running_loop().call_soon(self.send)
        self._connections.append(transport)

    def send(self) -> None:
        connections, self._connections = self._connections, []
        for transport in connections:
            transport.send()


class BufferedTransport:
    """A transport that buffers writes until `PendingWrites` sends them, in their order."""

    __slots__ = ("_buffer", "_is_response", "_pending", "_requests", "_transport")

    def __init__(self, transport: asyncio.Transport, pending: PendingWrites, requests: Collection[Any]) -> None:
        """Wraps `transport`; `requests` are those that the server is processing."""
        self._transport = transport
        self._pending = pending
        self._requests = requests
        self._buffer = b""
        self._is_response = False

    def write(self, data: bytes) -> None:
        if len(self._buffer) + len(data) > BUFFER_BYTES:
            self.send()
            self._transport.write(data)
        elif self._buffer:
            self._buffer += data
        elif data:
            self._buffer = data
            if not self._is_response:
                self._pending.add(self)

    def begin(self) -> None:
        """Marks the beginning of a response, which `end` completes."""
        self.send()
        self._is_response = True

    def end(self) -> None:
        self._is_response = False
        if len(self._requests) == 1:
            self.send()
        elif self._buffer:
            self._pending.add(self)

    def send(self) -> None:
        data, self._buffer = self._buffer, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self.send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """One connection of uvicorn, with buffered writes."""

    def __init__(self, pending: PendingWrites, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._pending = pending

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # the same type as in uvicorn
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, BufferedTransport(transport, self._pending, self.tasks))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {TRANSPORT_EXTENSION: self.transport}  # type: ignore[dict-item]  # only used within this process


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Returns the server configuration of a replica, without host and port."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=cast(type[Connection], functools.partial(Connection, PendingWrites())),  # called for each connection
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the client's address is not used, and this would cost time for each request
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )

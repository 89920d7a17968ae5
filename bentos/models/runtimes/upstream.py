"""HTTP over a runtime's Unix socket: an answer as it arrives for the event loop, and a whole one for a thread."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httptools


class UpstreamLost(Exception):
    """The runtime does not answer, or its answer ended in the middle."""


class Exchange(asyncio.Protocol):
    """One request and its answer, on a connection of its own."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._arrived = asyncio.Event()
        self._headers = asyncio.get_running_loop().create_future()
        self._is_complete = False
        self._is_lost = False
        self._transport: asyncio.Transport | None = None

    async def status(self) -> int:
        """Returns the status of the answer, as soon as it is known.

        Raises:
            UpstreamLost: the connection ended before.
        """
        await self._headers
        if self._is_lost and not self._is_complete and not self._parts:
            raise UpstreamLost
        return int(self._parser.get_status_code())

    async def read(self) -> bytes:
        """Returns what has arrived of the body since the last call, waiting for more; nothing at its end.

        Raises:
            UpstreamLost: the connection ended in the middle.
        """
        while not self._parts and not self._is_complete and not self._is_lost:
            self._arrived.clear()
            await self._arrived.wait()
        if self._parts:
            found = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts.clear()
            return found
        if not self._is_complete:
            raise UpstreamLost
        return b""

    async def read_all(self) -> bytes:
        """Returns the whole body.

        Raises:
            UpstreamLost: the connection ended in the middle.
        """
        found = []
        while part := await self.read():
            found.append(part)
        return b"".join(found)

    def close(self) -> None:
        """Closes the connection; a runtime stops to generate for one that is closed."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._wake()

    def on_headers_complete(self) -> None:
        if not self._headers.done():
            self._headers.set_result(None)

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)
        self._arrived.set()

    def on_message_complete(self) -> None:
        self._is_complete = True
        self._wake()

    def _wake(self) -> None:
        self._arrived.set()
        self.on_headers_complete()


async def send(address: Path, path: str, body: bytes) -> Exchange:
    """Posts JSON to a path of a runtime.

    Raises:
        UpstreamLost: nothing listens.
    """
    head = (
        f"POST {path} HTTP/1.1\r\nhost: runtime\r\nconnection: close\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    try:
        _, exchange = await loop.create_unix_connection(lambda: Exchange(head.encode() + body), str(address))
    except OSError as error:
        raise UpstreamLost from error
    return exchange


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: Path, seconds: float) -> None:
        super().__init__("runtime", timeout=seconds)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._address))


@contextmanager
def opened(address: Path, path: str, body: bytes | None, seconds: float) -> Iterator[http.client.HTTPResponse]:
    """Yields the answer to a POST of JSON, or to a GET without `body`, for a thread; `seconds` limits each wait.

    Raises:
        UpstreamLost: the runtime does not answer.
    """
    connection = _UnixConnection(address, seconds)
    try:
        headers: dict[str, Any] = {"content-type": "application/json", "connection": "close"}
        connection.request("POST" if body is not None else "GET", path, body, headers)
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        raise UpstreamLost from error
    finally:
        connection.close()

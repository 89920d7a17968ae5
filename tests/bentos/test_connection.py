"""Answers leave together at the end of a turn of the event loop: whole, in order, and without waiting for what comes later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bentos import connection as connection_module
from bentos.connection import BUFFER_BYTES, BufferedTransport, PendingWrites, server_config
from headrace.runtime.http_messages import BytesResponse
from tests.bentos.live_app import listening

pytestmark = pytest.mark.anyio
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Wire(asyncio.Transport):
    """What reached it, a write each."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_gone = False

    def write(self, data: Any) -> None:
        assert not self.is_gone
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_gone

    def close(self) -> None:
        self.is_gone = True


async def turn() -> None:
    """Until the event loop has gone round."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_answers_of_one_turn_are_written_once_at_its_end() -> None:
    pending, wires = PendingWrites(), [Wire(), Wire()]
    for number, wire in enumerate(wires):
        held = BufferedTransport(wire, pending, ())
        held.write(b"head ")
        held.write(b"body %d" % number)
    assert [wire.written for wire in wires] == [[], []]
    await turn()
    assert [wire.written for wire in wires] == [[b"head body 0"], [b"head body 1"]]


async def test_an_answer_that_waited_too_long_is_written_before_the_turn_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "BUFFER_SECONDS", -1.0)
    pending, first, second = PendingWrites(), Wire(), Wire()
    BufferedTransport(first, pending, ()).write(b"first")
    BufferedTransport(second, pending, ()).write(b"second")
    assert (first.written, second.written) == ([b"first"], [])
    await turn()
    assert second.written == [b"second"]


async def test_a_large_answer_is_written_immediately_after_the_held_ones() -> None:
    wire, large = Wire(), b"x" * (BUFFER_BYTES + 1)
    held = BufferedTransport(wire, PendingWrites(), ())
    held.write(b"head")
    held.write(large)
    assert wire.written == [b"head", large]


async def test_held_pieces_are_bounded() -> None:
    wire = Wire()
    held = BufferedTransport(wire, PendingWrites(), ())
    for _ in range(3):
        held.write(b"x" * (BUFFER_BYTES // 2))
    assert sum(map(len, wire.written)) > BUFFER_BYTES


async def test_closing_sends_what_is_held() -> None:
    wire = Wire()
    held = BufferedTransport(wire, PendingWrites(), ())
    held.write(b"last words")
    held.close()
    assert (wire.written, wire.is_gone) == ([b"last words"], True)


async def test_a_disconnected_client_does_not_delay_other_answers() -> None:
    pending, gone, here = PendingWrites(), Wire(), Wire()
    for wire in (gone, here):
        BufferedTransport(wire, pending, ()).write(b"answer")
    gone.is_gone = True
    await turn()
    assert (gone.written, here.written) == ([], [b"answer"])


def served(app: App) -> AbstractContextManager[str]:
    """`app` behind this connection, with the loop and parser of a replica."""
    return listening(server_config(app))


async def test_a_streams_head_does_not_wait_for_its_first_piece() -> None:
    go_on = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.to_thread(go_on.wait, 30)
        await send({"type": "http.response.body", "body": b"piece"})

    with served(app) as address, httpx.stream("GET", f"http://{address}/", timeout=10) as response:
        assert response.status_code == 200  # while the app waits
        go_on.set()
        assert response.read() == b"piece"


async def test_requests_sent_at_once_over_one_connection_are_answered_whole_and_in_order() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = scope["path"].encode() * 1000
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    with served(app) as address:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"".join(b"GET /%03d HTTP/1.1\r\nhost: x\r\n\r\n" % i for i in range(100)))
        for i in range(100):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(4000) == b"/%03d" % i * 1000
        writer.close()


async def test_an_answer_that_ends_its_connection_arrives_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"4"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"last"})

    with served(app) as address:
        response = httpx.get(f"http://{address}/")
        assert (response.content, response.headers["connection"]) == (b"last", "close")


def test_the_answer_to_a_single_request_is_sent_immediately() -> None:
    wire = Wire()
    held = BufferedTransport(wire, PendingWrites(), requests=["this one"])
    held.begin()
    held.write(b"head ")
    held.write(b"body")
    assert wire.written == []
    held.end()
    assert wire.written == [b"head body"]


async def test_one_of_several_answers_waits_for_the_end_of_the_turn() -> None:
    wire = Wire()
    held = BufferedTransport(wire, PendingWrites(), requests=["this one", "another"])
    held.begin()
    held.write(b"head ")
    held.write(b"body")
    held.end()
    assert wire.written == []
    await turn()
    assert wire.written == [b"head body"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_whole_answer_arrives_for_each_method(method: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await BytesResponse(b"whole", media_type="text/plain")(scope, receive, send)

    with served(app) as address, httpx.Client(base_url=f"http://{address}", timeout=10) as client:
        for _ in range(3):
            response = client.request(method, "/")
            assert response.headers["content-length"] == "5"
            assert response.content == (b"whole" if method == "GET" else b"")

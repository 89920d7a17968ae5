"""Answers that come piece by piece: steps in the thread for large work, events to the client, both ended by its leaving.

Every step is a turn of its own in that thread, so that texts which are written at the same time take turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bentos.http import Refused

logger = logging.getLogger("headrace.serve")
MAX_TEXTS = 16
"""Written at once; a request beyond them gets 503, and the balancer sends it to another replica."""
COMMENT = b": writing\n\n"
SILENT_SECONDS = 0.5
"""A text that grows by nothing to show for so long sends a comment, which keeps the balancer from taking it for stuck."""
Event = dict[str, Any]


@runtime_checkable
class Streaming(Protocol):
    """A served model that can answer piece by piece."""

    def streams(self, instances: list[Any]) -> list[Iterator[Event]]:
        """Events of each instance's answer; advancing an iterator is one step of work."""
        ...

    def join(self, events: Sequence[Event]) -> Event:
        """The events of one answer as one."""
        ...


class Streams:
    """The answers under way, each stepped in `thread`."""

    def __init__(self, thread: Executor) -> None:
        self._thread = thread
        self._under_way = 0

    async def join(self, request: Request, model: Streaming, streams: list[Iterator[Event]]) -> list[Event]:
        """Whole answers, one after another.

        Raises:
            Refused: too many at once.
            ClientDisconnect: the client is gone, and the rest of the work is left.
        """
        with self._room():
            return [model.join([event async for event in self._while_there(request, steps)]) for steps in streams]

    def respond(self, request: Request, steps: Iterator[Event], last: Event) -> StreamingResponse:
        """Server-sent events as they come, those without text left out; `last` is added to the last one.

        A failure amid them becomes an event named `error`.

        Raises:
            Refused: too many at once.
        """
        held = ExitStack()
        held.enter_context(self._room())
        return _Events(self._lines(request, steps, last), held)

    async def _lines(self, request: Request, steps: Iterator[Event], last: Event) -> AsyncIterator[bytes]:
        sent = time.monotonic()
        try:
            async for event in self._take(steps):
                is_last = event.keys() != {"text"}
                if is_last or event["text"]:
                    yield _line({**event, **last} if is_last else event)
                elif time.monotonic() - sent > SILENT_SECONDS:
                    yield COMMENT
                else:
                    continue
                sent = time.monotonic()
        except Exception:  # the status is long sent: the client learns of it as an event
            logger.exception("request %s failed", request.state.request_id)
            hidden = {"code": "internal", "message": "the server failed; its log names the request id"}
            yield b"event: error\n" + _line({"error": hidden, "request_id": request.state.request_id})

    async def _while_there(self, request: Request, steps: Iterator[Event]) -> AsyncIterator[Event]:
        async for event in self._take(steps):
            if await request.is_disconnected():
                raise ClientDisconnect
            yield event

    async def _take(self, steps: Iterator[Event]) -> AsyncIterator[Event]:
        """The events, each made in a turn of its own in the thread."""
        loop = asyncio.get_running_loop()
        while (event := await loop.run_in_executor(self._thread, next, steps, None)) is not None:
            yield event

    @contextmanager
    def _room(self) -> Iterator[None]:
        if self._under_way >= MAX_TEXTS:
            raise Refused(503, "overloaded", "too many texts are being written; try again", {"retry-after": "1"})
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


class _Events(StreamingResponse):
    """Server-sent events; lets go of `held` when the last one is sent, or the client is gone."""

    def __init__(self, lines: AsyncIterator[bytes], held: ExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # no proxy is to keep or to gather them
        super().__init__(lines, headers=headers, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


def _line(event: Event) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"

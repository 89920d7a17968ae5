"""Answers that come piece by piece: texts written together, events to their clients, both ended by a client's leaving."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, Protocol, runtime_checkable

import msgspec
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bentos.scheduling.continuous import Continuous, Event, Row, Text
from bentos.scheduling.worker_thread import wait_for
from headrace.runtime.http import Refused

logger = logging.getLogger("headrace.serve")
MAX_TEXTS = 16
"""Requests for texts at once; one beyond them gets 503, and the balancer sends it to another replica."""
TEXTS_OF_A_REQUEST = 8
"""Written at once for one request, so that it leaves room for others."""
COMMENT = b": writing\n\n"
SILENT_SECONDS = 0.5
"""A text that grows by nothing to show for so long sends a comment, which keeps the balancer from taking it for stuck."""
Lines = AsyncGenerator[bytes, None]


@runtime_checkable
class Streaming(Protocol):
    """A served model that can answer piece by piece."""

    def streams(self, instances: list[Any]) -> list[Text]:
        """What is to be written for each instance."""
        ...

    def join(self, events: Sequence[Event]) -> Event:
        """The events of one answer as one."""
        ...


class Streams:
    """The answers under way, stepped in `thread`; `account` is told of tokens as they are written to a stream."""

    def __init__(self, thread: Executor, account: Callable[..., None]) -> None:
        self._thread = thread
        self._account = account
        self._continuous: Continuous | None = None
        self._under_way = 0

    async def join(self, request: Request, model: Streaming, texts: list[Text]) -> list[Event]:
        """Whole answers, in the order of `texts`.

        Raises:
            Refused: 503, too many at once; 504, they take too long.
            ClientDisconnect: the client is gone, and the rest of the work is left.
        """
        with self._room():
            return await wait_for(asyncio.ensure_future(self._gather(model, texts)))

    def respond(self, request: Request, text: Text, last: Event) -> StreamingResponse:
        """Server-sent events as they come, those without text left out; `last` is added to the last one.

        A failure amid them becomes an event named `error`.

        Raises:
            Refused: too many at once.
        """

        def to_line(place: int, event: Event) -> bytes:
            is_last = "finish_reason" in event
            return line({**event, **last} if is_last else event) if is_last or event["text"] else b""

        return self.send(request, [text], to_line)

    def send(
        self,
        request: Request,
        texts: list[Text],
        to_line: Callable[[int, Event], bytes],
        end: Callable[[], bytes] | None = None,
    ) -> StreamingResponse:
        """What `to_line` makes of each event and its text's place, and `end` in the end; lines may be empty.

        Raises:
            Refused: too many at once.
        """
        held = ExitStack()
        held.enter_context(self._room())
        return _Events(self._lines(request, texts, to_line, end), held)

    async def events(self, texts: Sequence[Text]) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of all texts as they come, each with its text's place; the last of a text has `finish_reason`."""
        found: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        rows: list[Row] = []

        def begin() -> None:
            place = len(rows)
            rows.append(Row(texts[place], lambda event: found.put_nowait((place, event))))
            self._continuous_of(texts[place]).add(rows[place])

        try:
            for _ in range(min(TEXTS_OF_A_REQUEST, len(texts))):
                begin()
            left = len(texts)
            while left:
                place, event = await found.get()
                if isinstance(event, Exception):
                    raise event
                yield place, event
                if "finish_reason" in event:
                    left -= 1
                    if len(rows) < len(texts):
                        begin()
        finally:
            for row in rows:
                row.is_gone = True

    def _continuous_of(self, text: Text) -> Continuous:
        if self._continuous is None or self._continuous.language is not text.language:
            self._continuous = Continuous(text.language, self._thread)
        return self._continuous

    async def _gather(self, model: Streaming, texts: list[Text]) -> list[Event]:
        found: list[list[Event]] = [[] for _ in texts]
        async with aclosing(self.events(texts)) as events:
            async for place, event in events:
                found[place].append(event)
        return [model.join(events) for events in found]

    async def _lines(
        self,
        request: Request,
        texts: list[Text],
        to_line: Callable[[int, Event], bytes],
        end: Callable[[], bytes] | None,
    ) -> Lines:
        sent = time.monotonic()
        try:
            async with aclosing(self.events(texts)) as events:
                async for place, event in events:
                    self._account(request, tokens=1)
                    found = to_line(place, event)
                    if not found:
                        if time.monotonic() - sent <= SILENT_SECONDS:
                            continue
                        found = COMMENT
                    yield found
                    sent = time.monotonic()
            if end is not None:
                yield end()
        except Exception:  # the status is long sent: the client learns of it as an event
            logger.exception("request %s failed", request.state.request_id)
            hidden = {"code": "internal", "message": "the server failed; its log names the request id"}
            yield b"event: error\n" + line({"error": hidden, "request_id": request.state.request_id})

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

    def __init__(self, lines: Lines, held: ExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # no proxy is to keep or to gather them
        super().__init__(lines, headers=headers, media_type="text/event-stream")
        self._lines = lines
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._lines.aclose()


def line(event: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"

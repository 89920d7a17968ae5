"""Generates texts of concurrent requests, as whole answers or server-sent events, until a client disconnects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from bentos.scheduling.continuous import ActiveText, ContinuousBatching, Event
from bentos.scheduling.slots import TenantSlots
from bentos.scheduling.worker_thread import wait_for
from headrace.runtime.generation import GenerationRequest
from headrace.runtime.http_messages import TrackedRequest

logger = logging.getLogger("headrace.serve")
MAX_REQUESTS = 16
"""Requests that generate texts at once; a further one gets 503, and the load balancer tries another replica."""
TEXTS_PER_REQUEST = 8
"""Texts of one request that are generated at once, so that it leaves room for others."""
COMMENT = b": writing\n\n"
SILENT_SECONDS = 0.5
"""A stream without visible characters for so long sends a comment, so that the load balancer does not take it for stuck."""
Lines = AsyncGenerator[bytes, None]


@runtime_checkable
class Streaming(Protocol):
    """A served model whose answers can be streamed."""

    def generation_requests(self, instances: list[Any]) -> list[GenerationRequest]:
        """Returns what to generate for each instance."""
        ...

    def join(self, events: Sequence[Event]) -> Event:
        """Merges the events of one answer into a single one."""
        ...


class Streams:
    """Generates texts in `thread`; `record_usage` is called for each token of a stream, `observe_text` for each streamed text
    with the seconds to its first token, those from there to its last one, and its tokens.
    """

    def __init__(
        self, thread: Executor, record_usage: Callable[..., None], observe_text: Callable[[float, float, int], None]
    ) -> None:
        self._thread = thread
        self._record_usage = record_usage
        self._observe_text = observe_text
        self._batching: ContinuousBatching | None = None
        self.slots = TenantSlots(MAX_REQUESTS)

    async def join(self, request: TrackedRequest, model: Streaming, texts: list[GenerationRequest]) -> list[Event]:
        """Returns whole answers, in the order of `texts`.

        Raises:
            Refused: 503, too many requests generate texts; 504, they take too long.
            ClientDisconnect: the client disconnected, and the rest of the work is abandoned.
        """
        with self.slots.take(request.tenant):
            request.is_worked_on = True
            return await wait_for(asyncio.ensure_future(self._gather(request.tenant, model, texts)))

    def respond(self, request: TrackedRequest, text: GenerationRequest, end_of: Callable[[str], Event]) -> StreamingResponse:
        """Returns the events of one text as server-sent events, without empty ones; the last event has the fields that
        `end_of` gives for its finish reason.

        A failure in the middle of the stream becomes an event named `error`.

        Raises:
            Refused: 503, too many requests generate texts.
        """

        def to_line(place: int, event: Event) -> bytes:
            is_last = "finish_reason" in event
            return line({**event, **end_of(event["finish_reason"])} if is_last else event) if is_last or event["text"] else b""

        return self.send(request, [text], to_line)

    def send(
        self,
        request: TrackedRequest,
        texts: list[GenerationRequest],
        to_line: Callable[[int, Event], bytes],
        end: Callable[[], bytes] | None = None,
    ) -> StreamingResponse:
        """Returns a stream of `to_line(index of the text, event)` for each event, followed by `end()`; lines may be empty.

        Raises:
            Refused: 503, too many requests generate texts.
        """
        slot = ExitStack()
        slot.enter_context(self.slots.take(request.tenant))
        return _EventStream(self._lines(request, texts, to_line, end), slot)

    async def events(self, texts: Sequence[GenerationRequest], tenant: str = "") -> AsyncGenerator[tuple[int, Event], None]:
        """Yields events of all texts as they come, each with its text's index; a text's last event has `finish_reason`."""
        found: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue()
        begun: list[ActiveText] = []

        def begin() -> None:
            place = len(begun)
            begun.append(ActiveText(texts[place], lambda event: found.put_nowait((place, event)), tenant))
            self._batching_for(texts[place]).add(begun[place])

        try:
            for _ in range(min(TEXTS_PER_REQUEST, len(texts))):
                begin()
            left = len(texts)
            while left:
                place, event = await found.get()
                if isinstance(event, Exception):
                    raise event
                yield place, event
                if "finish_reason" in event:
                    left -= 1
                    if len(begun) < len(texts):
                        begin()
        finally:
            for text in begun:
                text.is_cancelled = True

    def _batching_for(self, text: GenerationRequest) -> ContinuousBatching:
        if self._batching is None or self._batching.generator is not text.generator:
            self._batching = ContinuousBatching(text.generator, self._thread)
        return self._batching

    async def _gather(self, tenant: str, model: Streaming, texts: list[GenerationRequest]) -> list[Event]:
        found: list[list[Event]] = [[] for _ in texts]
        async with aclosing(self.events(texts, tenant)) as events:
            async for place, event in events:
                found[place].append(event)
        return [model.join(events) for events in found]

    async def _lines(
        self,
        request: TrackedRequest,
        texts: list[GenerationRequest],
        to_line: Callable[[int, Event], bytes],
        end: Callable[[], bytes] | None,
    ) -> Lines:
        sent = time.monotonic()
        times: list[_Times | None] = [None] * len(texts)
        try:
            async with aclosing(self.events(texts, request.tenant)) as events:
                async for place, event in events:
                    self._record_usage(request, tokens=1)
                    times[place] = (times[place] or _Times(time.perf_counter())).with_token()
                    found = to_line(place, event)
                    if not found:
                        if time.monotonic() - sent <= SILENT_SECONDS:
                            continue
                        found = COMMENT
                    yield found
                    sent = time.monotonic()
            if end is not None:
                yield end()
        except Exception:  # the status is sent already: the client gets the error as an event
            logger.exception("request %s failed", request.request_id)
            hidden = {"code": "internal", "message": "the server failed; see its log for this request id"}
            yield b"event: error\n" + line({"error": hidden, "request_id": request.request_id})
        finally:
            for one in times:
                if one is not None:
                    self._observe_text(one.first - request.started, one.last - one.first, one.tokens)


@dataclass
class _Times:
    """When the tokens of a text came, by `time.perf_counter`."""

    first: float
    last: float = 0.0
    tokens: int = 0

    def with_token(self) -> _Times:
        self.last = time.perf_counter()
        self.tokens += 1
        return self


class _EventStream(StreamingResponse):
    """Server-sent events; closes `slot` when the last one is sent or the client disconnects."""

    def __init__(self, lines: Lines, slot: ExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies must neither cache nor buffer events
        super().__init__(lines, headers=headers, media_type="text/event-stream")
        self._lines = lines
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slot:
            try:
                await super().__call__(scope, receive, send)
            finally:
                await self._lines.aclose()


def line(event: Any) -> bytes:
    """Encodes a server-sent event."""
    return b"data: " + msgspec.json.encode(event) + b"\n\n"

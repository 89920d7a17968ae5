"""Continuous batching: each step of the graph generates one token of every active text; texts join and leave between steps.

This is iteration-level scheduling (Orca, Yu et al. 2022). A prompt is read in a step of its own, and the prompt tokens read
between two steps are limited, so that other texts are hardly delayed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from threading import Lock
from typing import Any

from headrace.runtime.generation import GenerationRequest, TextGenerator, TextWriter
from headrace.runtime.text_batch import TextBatch

logger = logging.getLogger("headrace.serve")
Event = dict[str, Any]
Put = Callable[[Event | Exception], None]
MAX_BATCH_TEXTS = 16
"""Texts in one step; further ones wait until one of them ends, and those of the tenant with the fewest are next."""
PROMPT_TOKENS = 512
"""Prompt tokens that are read between two steps; a longer prompt is read alone."""
TURN_SECONDS = 0.0005
"""Steps run for so long before their events are sent: starting a job and waking an event loop costs half a short step."""


class ActiveText:
    """A queued or active text. `put` is called in the event loop of its request, with each event or an error."""

    def __init__(self, request: GenerationRequest, put: Put, tenant: str = "") -> None:
        self.request = request
        self.put = put
        self.tenant = tenant
        self.loop = asyncio.get_running_loop()
        self.writer = TextWriter(request.generator.encoder, request.sampling)
        self.steps = 0
        self.is_cancelled = False
        """Whether its client disconnected; the next step leaves it out."""


Outbox = list[tuple[ActiveText, Event | Exception]]


class ContinuousBatching:
    """All texts of one model. A turn is one job in the prediction thread, so that other jobs run between two turns."""

    def __init__(self, generator: TextGenerator, thread: Executor) -> None:
        self.generator = generator
        self._thread = thread
        self._batch = TextBatch(generator.session, generator.layout)
        self._waiting: deque[ActiveText] = deque()
        self._active: dict[int, ActiveText] = {}
        self._lock = Lock()
        self._is_running = False

    def add(self, text: ActiveText) -> None:
        """Queues a text and returns at once; called in an event loop."""
        with self._lock:
            self._waiting.append(text)
            if self._is_running:
                return
            self._is_running = True
        self._thread.submit(self._turn)

    def _turn(self) -> None:
        """Reads prompts, runs steps for a while, sends their events, and submits the next turn."""
        outbox: Outbox = []
        try:
            self._active = {number: text for number, text in self._active.items() if not text.is_cancelled}
            self._read_prompts(outbox)
            until = 0.0 if outbox else time.monotonic() + TURN_SECONDS  # a text's first token waits for one step at most
            self._step(outbox)
            while self._active and not self._waiting and time.monotonic() < until:
                self._step(outbox)
        except Exception as error:  # the graph failed, and with it all texts of the step
            logger.exception("a step of %d texts failed", len(self._active))
            outbox += [(text, error) for text in self._active.values()]
            self._active = {}
            self._batch = TextBatch(self.generator.session, self.generator.layout)
        _send(outbox)
        with self._lock:
            self._is_running = bool(self._active or self._waiting)
        if self._is_running:
            self._thread.submit(self._turn)

    def _read_prompts(self, outbox: Outbox) -> None:
        left = PROMPT_TOKENS
        while self._waiting and len(self._active) < MAX_BATCH_TEXTS and left > 0:
            text = self._next_waiting()
            if text.is_cancelled:
                continue
            left -= len(text.request.prompt)
            try:
                number, logits = self._batch.read(text.request.prompt)
            except Exception as error:  # of this prompt alone
                outbox.append((text, error))
                continue
            self._active[number] = text
            self._take(number, text, logits, outbox)

    def _next_waiting(self) -> ActiveText:
        """Takes the first waiting text of the tenant with the fewest active ones."""
        active = Counter(text.tenant for text in self._active.values())
        with self._lock:
            first: dict[str, ActiveText] = {}
            for text in self._waiting:
                first.setdefault(text.tenant, text)
            found = min(first.values(), key=lambda text: active[text.tenant])
            self._waiting.remove(found)
        return found

    def _step(self, outbox: Outbox) -> None:
        tokens = {number: text.writer.tokens[-1] for number, text in self._active.items()}
        for number, logits in self._batch.step(tokens).items():
            self._take(number, self._active[number], logits, outbox)

    def _take(self, number: int, text: ActiveText, logits: Any, outbox: Outbox) -> None:
        """Samples the next token of a text."""
        try:
            chunk = text.writer.take(logits)
        except ArithmeticError as error:
            del self._active[number]
            outbox.append((text, error))  # a failure of the model, whatever the prompt
            return
        text.steps += 1
        event: Event = {"text": chunk.text}
        if chunk.finish is not None:
            del self._active[number]
            event |= {"finish_reason": chunk.finish, "tokens": text.steps}
        outbox.append((text, event))


def _send(outbox: Outbox) -> None:
    """Passes events to their event loops, waking each loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, Outbox] = defaultdict(list)
    for text, event in outbox:
        by_loop[text.loop].append((text, event))
    for loop, events in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, events)
        except RuntimeError:  # the loop is closed: the server has stopped
            for text, _ in events:
                text.is_cancelled = True


def _put(events: Outbox) -> None:
    for text, event in events:
        if not text.is_cancelled:
            text.put(event)

"""Texts written together, a step of the graph for all of them: they join between two steps, and leave when they end.

As iteration-level scheduling (Orca, Yu et al. 2022) has it. A prompt is read in a step of its own, and between two steps of
the others only so much is read that they hardly notice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from headrace.runtime.generation import Language, Writer, Writing
from headrace.runtime.text_batch import Batch

logger = logging.getLogger("headrace.serve")
Event = dict[str, Any]
Put = Callable[[Event | Exception], None]
MOST_TOGETHER = 16
"""Texts that a step is for; others wait for one of them to end."""
PROMPT_TOKENS = 512
"""Prompts of so many tokens are read between two steps, or one that is longer."""
TURN_SECONDS = 0.0005
"""Steps follow each other for so long before they are told: to begin a job and wake an event loop costs half a short one."""


@dataclass(frozen=True, eq=False)
class Text:
    """What is to be written: checked, and not begun."""

    language: Language
    prompt: list[int]
    writing: Writing


class Row:
    """A text under way. `put` is called in the event loop of whoever asked, with each event or with what went wrong."""

    def __init__(self, text: Text, put: Put) -> None:
        self.text = text
        self.put = put
        self.loop = asyncio.get_running_loop()
        self.writer = Writer(text.language.encoder, text.writing)
        self.steps = 0
        self.is_gone = False
        """Nobody waits for it any more; it is left out of the next step."""


class Continuous:
    """All texts of one model. A turn is a job in the thread for large work: others get theirs between two turns."""

    def __init__(self, language: Language, thread: Executor) -> None:
        self.language = language
        self._thread = thread
        self._batch = Batch(language.session, language.layout)
        self._waiting: deque[Row] = deque()
        self._rows: dict[int, Row] = {}
        self._lock = Lock()
        self._is_turning = False

    def add(self, row: Row) -> None:
        """Called in an event loop; returns at once."""
        with self._lock:
            self._waiting.append(row)
            if self._is_turning:
                return
            self._is_turning = True
        self._thread.submit(self._turn)

    def _turn(self) -> None:
        """Reads prompts, takes steps for a while, tells what came of it, and asks for the next turn."""
        told: list[tuple[Row, Event | Exception]] = []
        try:
            self._rows = {name: row for name, row in self._rows.items() if not row.is_gone}
            self._read_prompts(told)
            until = 0.0 if told else time.monotonic() + TURN_SECONDS  # the first token of a text waits for one step at most
            self._step(told)
            while self._rows and not self._waiting and time.monotonic() < until:
                self._step(told)
        except Exception as error:  # the graph failed: for all that it was run for
            logger.exception("a step of %d texts failed", len(self._rows))
            told += [(row, error) for row in self._rows.values()]
            self._rows = {}
            self._batch = Batch(self.language.session, self.language.layout)
        _tell(told)
        with self._lock:
            self._is_turning = bool(self._rows or self._waiting)
        if self._is_turning:
            self._thread.submit(self._turn)

    def _read_prompts(self, told: list[tuple[Row, Event | Exception]]) -> None:
        left = PROMPT_TOKENS
        while self._waiting and len(self._rows) < MOST_TOGETHER and left > 0:
            row = self._waiting.popleft()
            if row.is_gone:
                continue
            left -= len(row.text.prompt)
            try:
                name, logits = self._batch.read(row.text.prompt)
            except Exception as error:  # this prompt's alone
                told.append((row, error))
                continue
            self._rows[name] = row
            self._take(name, row, logits, told)

    def _step(self, told: list[tuple[Row, Event | Exception]]) -> None:
        tokens = {name: row.writer.tokens[-1] for name, row in self._rows.items()}
        for name, logits in self._batch.step(tokens).items():
            self._take(name, self._rows[name], logits, told)

    def _take(self, name: int, row: Row, logits: Any, told: list[tuple[Row, Event | Exception]]) -> None:
        """One more token of a text."""
        try:
            piece = row.writer.take(logits)
        except ArithmeticError as error:
            del self._rows[name]
            told.append((row, error))  # no prompt is to blame: the model is
            return
        row.steps += 1
        event: Event = {"text": piece.text}
        if piece.finish is not None:
            del self._rows[name]
            event |= {"finish_reason": piece.finish, "tokens": row.steps}
        told.append((row, event))


def _tell(told: list[tuple[Row, Event | Exception]]) -> None:
    """Wakes each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Row, Event | Exception]]] = defaultdict(list)
    for row, event in told:
        by_loop[row.loop].append((row, event))
    for loop, events in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, events)
        except RuntimeError:  # the loop is closed: nobody is there any more
            for row, _ in events:
                row.is_gone = True


def _put(events: list[tuple[Row, Event | Exception]]) -> None:
    for row, event in events:
        if not row.is_gone:
            row.put(event)

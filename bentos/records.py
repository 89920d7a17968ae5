"""What was answered to which request, in files beside the usage: one JSON line a request, never with what was asked.

Lines are written every second by a thread, off the hot path: a killed process loses a second of them. Feedback, monitoring and
the comparison with a shadow read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from bentos.metrics import Answer
from headrace.contract import Contract

logger = logging.getLogger("headrace.records")
WRITE_SECONDS = 1.0
MOST_ANSWERS = 100
"""Of one request; the rest is left out."""
MOST_WAITING = 50_000
"""Requests that wait to be written; of more, the oldest are left out."""
LINES_AT_ONCE = 50
"""Encoded before other threads may run."""
FILE_BYTES = 32 * 1024 * 1024
FILES = 4
"""Of this size at most; the oldest go."""


class Records:
    """The answers of this process, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: deque[tuple[float, str, str, Sequence[Answer]]] = deque(maxlen=MOST_WAITING)
        self._model = ("none", "0")
        self._file: BinaryIO | None = None
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="records", daemon=True)
        self._thread.start()

    def name_model(self, model: str, version: str) -> None:
        self._model = (model, version)

    def add(self, request_id: str, tenant: str, answers: Sequence[Answer]) -> None:
        self._waiting.append((time.time(), request_id, tenant, answers[:MOST_ANSWERS]))

    def close(self) -> None:
        """Writes what waits."""
        self._stop.set()
        self._thread.join()
        self._write()
        if self._file is not None:
            self._file.close()

    def _keep_writing(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                lines = [self._line(*self._waiting.popleft()) for _ in range(min(LINES_AT_ONCE, len(self._waiting)))]
                self._open().write(_encode(lines))
                time.sleep(0)  # whoever answers requests goes first
            if self._file is not None:
                self._file.flush()
            self._failed = False
        except OSError as error:
            if not self._failed:  # told once until it is mended
                logger.error("answers cannot be recorded in %s: %s", self._folder, error)
            self._failed = True

    def _line(self, at: float, request_id: str, tenant: str, answers: Sequence[Answer]) -> _Line:
        return _Line(round(at, 3), request_id, tenant, *self._model, answers)

    def _open(self) -> BinaryIO:
        """The file to add to; a full one is followed by a new one, and the oldest go."""
        if self._file is not None and self._file.tell() < FILE_BYTES:
            return self._file
        if self._file is not None:
            self._file.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / f"answers-{time.time_ns()}.jsonl").open("ab")
        for old in sorted(self._folder.glob("answers-*.jsonl"))[:-FILES]:
            with contextlib.suppress(OSError):
                old.unlink()
        return self._file


class _Line(msgspec.Struct):
    at: float
    id: str
    tenant: str
    model: str
    version: str
    answers: Sequence[Answer]


_encode = msgspec.json.Encoder().encode_lines


def plain(contract: Contract, answers: Sequence[Any]) -> list[Answer]:
    """Each answer as its label or value; a text, which may say what was asked, as 16 hex digits of its sha256."""
    if contract.output == "text":
        return [hashlib.sha256(_text(answer).encode(errors="replace")).hexdigest()[:16] for answer in answers[:MOST_ANSWERS]]
    name = "label" if contract.output == "probabilities" else contract.target
    return [answer.get(name, "") if isinstance(answer, dict) else answer for answer in answers]


def _text(answer: Any) -> str:
    """Of an answer with a text among other things, that text."""
    if isinstance(answer, dict):
        return next((value for value in answer.values() if isinstance(value, str)), "")
    return str(answer)

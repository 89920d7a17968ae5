"""What was answered to which request, in files beside the usage: one JSON line a request, never with what was asked.

Lines wait in memory and are written every second by a thread: a killed process loses a second of them. Feedback, monitoring
and the comparison with a shadow read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from bentos.telemetry.metrics import Answer
from headrace.runtime.contract import Contract

logger = logging.getLogger("headrace.records")
WRITE_SECONDS = 1.0
MOST_ANSWERS = 100
"""Of one request; the rest is left out."""
MOST_WAITING_BYTES = 8 * 1024 * 1024
"""Of lines that wait to be written: what comes while the disk takes no more is left out."""
FILE_BYTES = 32 * 1024 * 1024
"""A file that holds so many is followed by a new one."""
FILES = 4
"""At most; the oldest go."""


class Records:
    """The answers of this process, in `folder`.

    A line is encoded where the answer is made, which costs less than handing it to a thread that competes with the next.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting = bytearray()
        self._lock = threading.Lock()
        self._model = ("none", "0")
        self._file: FileIO | None = None
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="records", daemon=True)
        self._thread.start()

    def name_model(self, model: str, version: str) -> None:
        self._model = (model, version)

    def add(self, request_id: str, tenant: str, answers: Sequence[Answer]) -> None:
        line = _Line(round(time.time(), 3), request_id, tenant, *self._model, answers[:MOST_ANSWERS])
        with self._lock:
            if len(self._waiting) < MOST_WAITING_BYTES:
                _encode_into(line, self._waiting, -1)
                self._waiting += b"\n"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.write()
        if self._file is not None:
            self._file.close()

    def _keep_writing(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self.write()

    def write(self) -> None:
        """Brings what waits to the disk; where that fails, it waits on."""
        with self._lock:
            lines, self._waiting = self._waiting, bytearray()
        written = 0
        try:
            while written < len(lines):
                written += self._open().write(memoryview(lines)[written:])
            self._failed = False
        except OSError as error:
            if not self._failed:  # told once until it is mended
                logger.error("answers cannot be recorded in %s: %s", self._folder, error)
            self._failed = True
            with self._lock:
                self._waiting[:0] = lines[written:]

    def _open(self) -> FileIO:
        """The file to add to."""
        if self._file is not None and self._file.tell() < FILE_BYTES:
            return self._file
        if self._file is not None:
            self._file.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / f"answers-{time.time_ns()}.jsonl").open("ab", buffering=0)
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


_encode_into = msgspec.json.Encoder().encode_into


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

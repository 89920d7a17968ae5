"""Records the answers of each request in files beside the usage: one JSON line for each request, without its inputs.

Lines are buffered and written every second by a thread, so that a killed process loses one second of them. Feedback,
monitoring and the comparison with a shadow version read them.
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
MAX_ANSWERS = 100
"""Answers of one request that are recorded; further ones are left out."""
MAX_BUFFER_BYTES = 8 * 1024 * 1024
"""Size of the buffer: lines that do not fit while the disk is full are dropped."""
FILE_BYTES = 32 * 1024 * 1024
"""Size at which a new file is started."""
FILES = 4
"""Files that are kept; older ones are removed."""


class Records:
    """Writes the answers of this process to `folder`.

    Lines are encoded on the event loop: passing them to a thread, which competes for the GIL, would cost more.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._model = ("none", "0")
        self._file: FileIO | None = None
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, name="records", daemon=True)
        self._thread.start()

    def set_model(self, model: str, version: str) -> None:
        self._model = (model, version)

    def add(self, request_id: str, tenant: str, answers: Sequence[Answer]) -> None:
        line = _Record(round(time.time(), 3), request_id, tenant, *self._model, answers[:MAX_ANSWERS])
        with self._lock:
            if len(self._buffer) < MAX_BUFFER_BYTES:
                _encode_into(line, self._buffer, -1)
                self._buffer += b"\n"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.write()
        if self._file is not None:
            self._file.close()

    def _write_regularly(self) -> None:
        while not self._stop.wait(WRITE_SECONDS):
            self.write()

    def write(self) -> None:
        """Writes the buffer to the disk; on failure the lines stay in the buffer."""
        with self._lock:
            lines, self._buffer = self._buffer, bytearray()
        written = 0
        try:
            while written < len(lines):
                written += self._open().write(memoryview(lines)[written:])
            self._failed = False
        except OSError as error:
            if not self._failed:  # logged once until writing succeeds again
                logger.error("answers cannot be recorded in %s: %s", self._folder, error)
            self._failed = True
            with self._lock:
                self._buffer[:0] = lines[written:]

    def _open(self) -> FileIO:
        """Returns the current file, or starts a new one when it is full."""
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


class _Record(msgspec.Struct):
    at: float
    id: str
    tenant: str
    model: str
    version: str
    answers: Sequence[Answer]


_encode_into = msgspec.json.Encoder().encode_into


def recorded_answers(contract: Contract, answers: Sequence[Any]) -> list[Answer]:
    """Returns the label or value of each answer, several labels as a list and several values by name; a text, which may
    repeat inputs, as 16 hex digits of its sha256."""
    if contract.output == "text":
        return [hashlib.sha256(_text(answer).encode(errors="replace")).hexdigest()[:16] for answer in answers[:MAX_ANSWERS]]
    if contract.output == "labels":
        return [answer["labels"] for answer in answers]
    if contract.output == "values":
        return [dict(answer) for answer in answers]
    name = "label" if contract.output == "probabilities" else contract.target
    return [answer.get(name, "") if isinstance(answer, dict) else answer for answer in answers]


def _text(answer: Any) -> str:
    """Returns the first text field of an answer."""
    if isinstance(answer, dict):
        return next((value for value in answer.values() if isinstance(value, str)), "")
    return str(answer)

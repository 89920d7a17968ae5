"""Keeps a random sample of the rows that this process answers, with their inputs: `samples-<hour>-<digits>.jsonl`, one file an
hour (UTC). Monitoring reads them.

The event loop only chooses rows and holds them; a thread encodes them and writes the files. What cannot be written is lost for
monitoring, and nothing else: no answer waits for a sample, or fails because of one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bentos.models.served_model import ServedModel
from bentos.telemetry.reservoir import Reservoir
from bentos.telemetry.sample_rows import SampledRow, SampleEncoder
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.sample_file import HOUR_SECONDS, PATTERN, SampleHead, begin_of, file_name, hour_of, is_expired

logger = logging.getLogger("headrace.samples")
RowAt = Callable[[int], tuple[Mapping[str, Any], Any, bool]]
"""Returns the inputs and the answer of a row, and whether the inputs are an instance instead of a row of the feeds."""
WRITE_SECONDS = 10.0
"""Shortest time between two writes."""
COUNT_SECONDS = 60.0
"""Time after which a file is written for its count of rows alone."""
IDLE_SHARE = 50
"""The writer rests for this many times as long as the last write took."""
PENDING_BYTES = 16 * 1024 * 1024
"""Rows that wait to be encoded; further ones are left out. At half of it the thread starts at once."""
HOUR_BYTES = 4 * 1024 * 1024
"""Size of the sample of an hour; if its rows are larger, fewer of them are kept."""
TOTAL_BYTES = 256 * 1024 * 1024
"""Size of all files of a replica; beyond it the oldest are removed."""
HELD_BODY_BYTES = 16 * 1024
"""Largest body of a request of one row that is held as it is; of a larger one the row is read at once."""
HELD_OVERHEAD_BYTES = 2000
HELD_BYTES_PER_BYTE = 5
"""What a held request takes in memory: a fixed number of bytes, and a number for each byte of its body."""
UNWRITTEN_HOURS = 2
"""Past hours that wait in memory while the disk is full."""


class _Held(NamedTuple):
    """A row of a small request, which is held whole until the row is read: most rows are replaced before that."""

    at: float
    request_id: str
    tenant: str
    row: int
    row_at: RowAt
    size: int
    """Bytes in memory, about."""


@dataclass
class _Sample:
    """The sample of one hour."""

    begin: float
    encoder: SampleEncoder
    head: SampleHead
    reservoir: Reservoir
    name: str
    ineligible: int = 0
    """Rows of requests that the share excluded."""
    pending: dict[int, SampledRow | _Held] = field(default_factory=dict)
    """Rows that are not encoded yet, by slot."""
    pending_bytes: int = 0
    """Memory that they take, about."""
    lines: dict[int, bytes] = field(default_factory=dict)
    left_out: int = 0
    is_changed: bool = False
    written_at: float = 0.0
    written_rows: int = 0

    @property
    def seen(self) -> int:
        return self.reservoir.seen + self.ineligible

    def is_due(self, now: float, is_past: bool) -> bool:
        """Whether the file has to be written: rows changed, or their number only and it is time for that."""
        counted = self.seen != self.written_rows and (is_past or abs(now - self.written_at) > COUNT_SECONDS)
        return bool(self.lines) and (self.is_changed or counted)


class Samples:
    """The sample of one process, written to `folder`. `wants` and `take` are called from one thread, the event loop.

    Args:
        rows_per_hour: most rows that are kept of each hour; at least 1.
        share: share of requests that are eligible.
        days: age at which files are removed.
    """

    def __init__(self, folder: Path, rows_per_hour: int, share: float = 1.0, days: float = 30.0) -> None:
        self._folder, self._rows, self._share, self._days = folder, rows_per_hour, share, days
        self._random = random.Random()
        self._model: ServedModel | None = None
        self._sample: _Sample | None = None
        self._past: list[_Sample] = []
        self._reservoir = Reservoir(1, self._random)
        """Of the current hour."""
        self._begin, self._end = 0.0, 0.0
        self._has_failed = False
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, name="samples", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls, folder: Path) -> Samples | None:
        """Returns the sample that the variables of this replica ask for; None if they ask for none."""
        rows = int(os.environ.get("HEADRACE_SAMPLE_ROWS_PER_HOUR", 0))
        if rows < 1 or os.environ.get("HEADRACE_SHADOW") == "1":  # a shadow gets copies, which the champion samples
            return None
        share = float(os.environ.get("HEADRACE_SAMPLE_SHARE", 1.0))
        return cls(folder, rows, share, float(os.environ.get("HEADRACE_SAMPLE_DAYS", 30.0)))

    def set_model(self, model: ServedModel) -> None:
        self._model = model
        self._begin = self._end = 0.0  # the next request begins a sample of its own

    def wants(self, rows: int) -> bool:
        """Counts the rows of an answered request, unless some of them are taken: then `take` has to be called.

        It is apart from `take`, because a request that is not taken should not pay for more.
        """
        if not self._begin <= (now := time.time()) < self._end:  # another hour, also of a clock that was set back
            self._begin_sample(now)
        if self._share < 1.0 and self._random.random() >= self._share:
            assert self._sample is not None
            self._sample.ineligible += rows
            return False
        reservoir = self._reservoir
        if (seen := reservoir.seen + rows) <= reservoir.next_taken:
            reservoir.seen = seen
            return False
        return True

    def take(self, request: TrackedRequest, rows: int, row_at: RowAt) -> None:
        """Counts the rows of a request for which `wants` was true, and holds those that are taken."""
        sample, now = self._sample, time.time()
        assert sample is not None
        length = request.header_bytes.get(b"content-length", b"")
        size = int(length) if length.isdigit() else HELD_BODY_BYTES + 1
        memory = HELD_OVERHEAD_BYTES + size * HELD_BYTES_PER_BYTE
        with self._lock:
            for row, slot in sample.reservoir.take(rows):
                if sample.pending_bytes > PENDING_BYTES:
                    sample.left_out += 1
                    continue
                held = _Held(now, request.request_id, request.tenant, row, row_at, memory)
                is_held = rows == 1 and size <= HELD_BODY_BYTES
                waiting = held if is_held else _read_row(held, sample.encoder)
                if waiting is None:
                    sample.left_out += 1
                    continue
                replaced = sample.pending.get(slot)
                sample.pending_bytes += waiting.size - (0 if replaced is None else replaced.size)
                sample.pending[slot] = waiting
            if sample.pending_bytes > PENDING_BYTES // 2:
                self._wake.set()

    def close(self) -> None:
        """Writes what is left."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self.write(at_end=True)

    def write(self, at_end: bool = False) -> None:
        """Encodes the rows that wait, and writes the files that changed; what could not be written is tried again."""
        with self._writing:
            with self._lock:
                samples = [*self._past, *([self._sample] if self._sample else [])]
            now = time.time()
            try:
                for sample in samples:
                    self._encode(sample)
                    if sample.is_due(now, at_end or sample is not self._sample):
                        self._write_file(sample, now)
                self._has_failed = False
            except OSError as error:
                if not self._has_failed:  # logged once until writing succeeds again
                    logger.error("samples cannot be written to %s: %s; they are lost if it stays so", self._folder, error)
                self._has_failed = True
            with self._lock:
                written = [one for one in self._past if one in samples and not self._has_failed]
                self._past = [one for one in self._past if one not in written][-UNWRITTEN_HOURS:]

    def _begin_sample(self, now: float) -> None:
        assert self._model is not None
        begin = now // HOUR_SECONDS * HOUR_SECONDS
        hour = hour_of(begin)
        replica = os.environ.get("HEADRACE_REPLICA", "")
        head = SampleHead(self._model.name, self._model.version, replica, hour, 0, 0, 0)
        reservoir = Reservoir(self._rows, self._random)
        sample = _Sample(begin, SampleEncoder(self._model), head, reservoir, file_name(hour, uuid.uuid4().hex[:8]))
        with self._lock:
            if self._sample is not None:
                self._past.append(self._sample)
            self._sample = sample
            self._reservoir = reservoir
            self._begin, self._end = begin, begin + HOUR_SECONDS

    def _encode(self, sample: _Sample) -> None:
        """Encodes the rows that wait; lowers the number of rows if they take too many bytes."""
        with self._lock:
            pending, sample.pending, sample.pending_bytes = sample.pending, {}, 0
        for slot, waiting in pending.items():
            sampled = _read_row(waiting, sample.encoder)
            line = None if sampled is None else _encoded(sampled, sample.encoder)
            if line is None:
                sample.left_out += 1
                continue
            sample.lines[slot] = line
            sample.is_changed = True
        while sum(map(len, sample.lines.values())) > HOUR_BYTES:
            self._shrink(sample)

    def _shrink(self, sample: _Sample) -> None:
        with self._lock:
            kept = sample.reservoir.shrink(max(1, sample.reservoir.size // 2))
            sample.lines = {new: sample.lines[old] for new, old in enumerate(kept) if old in sample.lines}
            sample.pending = {new: sample.pending[old] for new, old in enumerate(kept) if old in sample.pending}
            sample.pending_bytes = sum(one.size for one in sample.pending.values())

    def _write_file(self, sample: _Sample, now: float) -> None:
        """Writes the sample, completely or not at all."""
        seen, lines = sample.seen, list(sample.lines.values())
        head = SampleHead(**{**vars(sample.head), "seen": seen, "kept": len(lines), "left_out": sample.left_out})
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{sample.name}.part"
        try:
            with temporary.open("wb") as handle:
                handle.write(b"\n".join([json.dumps(head.to_json()).encode(), *lines, b""]))
                handle.flush()
                os.fsync(handle.fileno())
            temporary.rename(self._folder / sample.name)
        finally:
            temporary.unlink(missing_ok=True)
        if not sample.written_at:
            self._remove_old(now)
        sample.is_changed, sample.written_at, sample.written_rows = False, now, seen

    def _remove_old(self, now: float) -> None:
        """Removes files that are too old, those beyond the size of all, and what killed processes left half-written."""
        with contextlib.suppress(OSError):
            for part in self._folder.glob(f".{PATTERN}.part"):
                if now - part.stat().st_mtime > HOUR_SECONDS:
                    part.unlink(missing_ok=True)
            total = 0
            for path in sorted(self._folder.glob(PATTERN), key=lambda path: (begin_of(path) or 0.0, path.name), reverse=True):
                total += path.stat().st_size
                if total > TOTAL_BYTES or is_expired(path, now, self._days):
                    path.unlink(missing_ok=True)

    def _write_regularly(self) -> None:
        due = time.monotonic() + WRITE_SECONDS
        while not self._stop.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self._stop.is_set():
                return
            if time.monotonic() < due:  # too many rows wait
                sample = self._sample
                if sample is not None:
                    with self._writing:
                        self._encode(sample)
                continue
            began = time.monotonic()
            self.write()
            due = time.monotonic() + max(WRITE_SECONDS, IDLE_SHARE * (time.monotonic() - began))


def _read_row(held: SampledRow | _Held, encoder: SampleEncoder) -> SampledRow | None:
    """Returns the row, without personal fields; None if it cannot be read."""
    if isinstance(held, SampledRow):
        return held
    try:
        inputs, answer, is_instance = held.row_at(held.row)
        kept = encoder.without_personal(inputs)
        found = SampledRow(held.at, held.request_id, held.tenant, held.row, kept, answer, is_instance)
        _ = found.size
    except Exception:  # a custom model may accept and answer anything
        logger.debug("a row cannot be sampled", exc_info=True)
        return None
    return found


def _encoded(sampled: SampledRow, encoder: SampleEncoder) -> bytes | None:
    """Returns the line of a row; None if it is too large or cannot be encoded."""
    try:
        return encoder.encode(sampled)
    except Exception:  # as above
        logger.debug("a row cannot be sampled", exc_info=True)
        return None

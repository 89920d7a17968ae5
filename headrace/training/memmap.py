"""Rows in files, mapped into memory and read ahead, for tables that do not fit on the device. N: all rows."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Full, Queue
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.models.onnx_inference import rows_at_once
from headrace.training.rows import Batch, Columns, Window, cut, row_bytes, window_rows, windows

T = TypeVar("T")
UNSHUFFLED_ROWS = 2**16
"""Rows that are read at once in stored order."""
POLL_SECONDS = 0.1


class ArrayFile:
    """An array `(N, ...)` that grows, in an unnamed file: its space is freed however the process ends."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        self._rows = 0
        self._like: NDArray[Any] | None = None

    def append(self, array: NDArray[Any]) -> None:
        """Adds rows. They are written, not mapped, so that a full disk raises an error instead of a signal.

        Raises:
            OSError: the disk is full.
        """
        self._file.write(array.data if array.flags.c_contiguous else array.tobytes())
        self._rows += len(array)
        self._like = array[:0]

    def mapped(self) -> MappedArray:
        """Returns the rows that were added, for reading."""
        assert self._like is not None, "an array without rows cannot be mapped"
        self._file.flush()
        return MappedArray(self._file.fileno(), self._rows, torch.from_numpy(self._like))


class MappedArray:
    """A file's bytes as a tensor `(N, ...)`. Pages are released after reading, to keep this process's memory small."""

    def __init__(self, file: int, rows: int, like: Tensor) -> None:
        # A private mapping, which torch takes for writable; nothing is ever written to it.
        self._pages = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
        self.tensor = torch.frombuffer(self._pages, dtype=like.dtype).view(rows, *like.shape[1:])

    def read(self, window: Window) -> Tensor:
        """Returns a copy of the window's rows, in order."""
        stored = torch.cat([self.tensor[start:stop] for start, stop in window.blocks])
        self._pages.madvise(mmap.MADV_DONTNEED)
        return stored if window.order is None else stored.index_select(0, window.order)


class MappedRows:
    """Inputs and targets in files. Windows are read one by one, each while the previous one is used.

    At most three windows are in memory: one in use, one that waits, and one that is being read.
    """

    def __init__(self, inputs: Iterable[MappedArray], target: MappedArray, device: torch.device) -> None:
        self._arrays = (*inputs, target)
        self._device = device

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def target(self) -> Tensor:
        return self._arrays[-1].tensor

    @property
    def max_batch(self) -> int:
        return min(rows_at_once(array.tensor.shape) for array in self._arrays[:-1])

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, shuffle: torch.Generator | None = None, first: int = 0) -> Iterator[Batch]:
        """Yields the same batches as `Split.batches`."""
        at_once = window_rows(row_bytes(array.tensor for array in self._arrays))
        order = windows(len(self), at_once if shuffle else min(at_once, UNSHUFFLED_ROWS), shuffle)
        skip, order = _after(order, first * size)
        pieces = read_ahead(self._read(window) for window in order)
        for *inputs, target in cut((self._to_device(piece) for piece in pieces), size, skip):
            yield tuple(inputs), target

    def _read(self, window: Window) -> Columns:
        found = tuple(array.read(window) for array in self._arrays)
        return tuple(part.pin_memory() for part in found) if self._device.type == "cuda" else found

    def _to_device(self, piece: Columns) -> Columns:
        """Moves a whole window to the device: one large transfer instead of one per batch."""
        return tuple(part.to(self._device, non_blocking=True) for part in piece)


def _after(order: Iterator[Window], skip: int) -> tuple[int, Iterator[Window]]:
    """Drops windows within the first `skip` rows without reading them; returns the rows still to skip."""
    for window in order:
        if skip < window.rows:
            return skip, chain([window], order)
        skip -= window.rows
    return 0, iter(())


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, computed one ahead in a thread. The thread ends when the consumer is done or stops iterating.

    Raises:
        BaseException: any error that computing an item raised.
    """
    waiting: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=1)
    has_stopped = Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not has_stopped.is_set():
            with suppress(Full):
                waiting.put((item, error), timeout=POLL_SECONDS)
                return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if has_stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    thread = Thread(target=work, name="headrace-read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        has_stopped.set()
        thread.join()

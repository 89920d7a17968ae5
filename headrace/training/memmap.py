"""Rows that lie in files, mapped into memory and read ahead: for a table that the device cannot hold. N: all rows."""

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

from headrace.training.order import Piece, Window, cut, window_rows, windows
from headrace.training.rows import Batch, row_bytes

T = TypeVar("T")
AS_THEY_LIE_ROWS = 2**16
"""Rows read at once where nothing is shuffled."""
POLL_SECONDS = 0.1


class ArrayFile:
    """An array `(N, ...)` that grows, in a file without a name: however the process ends, its space is free again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        self._rows = 0
        self._like: NDArray[Any] | None = None

    def append(self, array: NDArray[Any]) -> None:
        """Adds rows; written, not mapped, so that a full disk is an error and no signal.

        Raises:
            OSError: no space is left.
        """
        self._file.write(array.data if array.flags.c_contiguous else array.tobytes())
        self._rows += len(array)
        self._like = array[:0]

    def mapped(self) -> MappedArray:
        """What was added, for reading."""
        assert self._like is not None, "an array without rows cannot be mapped"
        self._file.flush()
        return MappedArray(self._file.fileno(), self._rows, torch.from_numpy(self._like))


class MappedArray:
    """A file's bytes as a tensor `(N, ...)`; what was read is let go, so that it does not count as this process's memory."""

    def __init__(self, file: int, rows: int, like: Tensor) -> None:
        # A private mapping, which torch may take for writable: nothing is ever written to it.
        self._pages = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
        self.tensor = torch.frombuffer(self._pages, dtype=like.dtype).view(rows, *like.shape[1:])

    def read(self, window: Window) -> Tensor:
        """A copy of the window's rows, in their order."""
        lying = torch.cat([self.tensor[start:stop] for start, stop in window.blocks])
        self._pages.madvise(mmap.MADV_DONTNEED)
        return lying if window.within is None else lying.index_select(0, window.within)


class MappedRows:
    """Inputs and targets in files. An epoch goes through them window by window, and a thread reads the next one meanwhile.

    In memory there are at most three windows: the one that trains, the one that waits, and the one that is being read.
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

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, shuffle: torch.Generator | None = None, first: int = 0) -> Iterator[Batch]:
        """As `Split.batches`, row for row."""
        at_once = window_rows(row_bytes(array.tensor for array in self._arrays))
        order = windows(len(self), at_once if shuffle else min(at_once, AS_THEY_LIE_ROWS), shuffle)
        skip, order = _after(order, first * size)
        pieces = ahead(self._read(window) for window in order)
        for *inputs, target in cut((self._moved(piece) for piece in pieces), size, skip):
            yield tuple(inputs), target

    def _read(self, window: Window) -> Piece:
        found = tuple(array.read(window) for array in self._arrays)
        return tuple(part.pin_memory() for part in found) if self._device.type == "cuda" else found

    def _moved(self, piece: Piece) -> Piece:
        """A window goes to the device as a whole: one large transfer instead of one a batch."""
        return tuple(part.to(self._device, non_blocking=True) for part in piece)


def _after(order: Iterator[Window], skip: int) -> tuple[int, Iterator[Window]]:
    """Leaves out windows that lie within the first `skip` rows, unread; gives the rows still to skip."""
    for window in order:
        if skip < window.rows:
            return skip, chain([window], order)
        skip -= window.rows
    return 0, iter(())


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the consumer works, and another waits. The thread ends with its
    consumer, whether that goes to the end or leaves.

    Raises:
        BaseException: whatever making an item raised.
    """
    waiting: Queue[tuple[T | None, BaseException | None]] = Queue(maxsize=1)
    has_left = Event()

    def hand_over(item: T | None, error: BaseException | None = None) -> None:
        while not has_left.is_set():
            with suppress(Full):
                waiting.put((item, error), timeout=POLL_SECONDS)
                return

    def work() -> None:
        try:
            for item in items:
                hand_over(item)
                if has_left.is_set():
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(None, error)

    thread = Thread(target=work, name="headrace-reads-ahead", daemon=True)
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
        has_left.set()
        thread.join()

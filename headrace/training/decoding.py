"""Rows that are decoded again in each epoch by several threads, for sets whose decoded rows are too large for the disk."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.models.onnx_inference import rows_at_once
from headrace.task_types.base import RowDecoder
from headrace.training.rows import Batch, cut, row_bytes, window_rows, windows

if TYPE_CHECKING:
    import pandas as pd

AHEAD = 2
"""Batches that wait, besides one per thread."""


class RowsToDecode:
    """Collects the bytes of rows in an unnamed file: its space is freed however the process ends."""

    def __init__(self, decoder: RowDecoder, like: list[Tensor], device: torch.device, folder: Path) -> None:
        self._decoder, self._device = decoder, device
        self._width = row_bytes(like)
        self._shape = tuple(like[0].shape[1:])
        folder.mkdir(parents=True, exist_ok=True)
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        self._sizes: list[int] = []
        self._names: list[str] = []
        self._targets: list[NDArray[Any]] = []

    def add(self, frame: pd.DataFrame, targets: NDArray[Any]) -> None:
        """Adds rows.

        Raises:
            OSError: the disk is full.
        """
        for value in frame[self._decoder.column]:
            self._file.write(value)
            self._sizes.append(len(value))
        self._names += frame[self._decoder.name].tolist()
        self._targets.append(targets)

    def done(self) -> DecodedRows:
        self._file.flush()
        pages = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        ends = np.cumsum(self._sizes)
        target = torch.from_numpy(np.concatenate(self._targets))
        return DecodedRows(self._decoder, pages, ends, self._names, target, self._shape, self._width, self._device)


class DecodedRows:
    """Rows whose batches are decoded by threads while earlier ones are used. They equal those of `Split` and `MappedRows`."""

    def __init__(
        self,
        decoder: RowDecoder,
        pages: mmap.mmap,
        ends: NDArray[np.int64],
        names: list[str],
        target: Tensor,
        shape: tuple[int, ...],
        width: int,
        device: torch.device,
    ) -> None:
        """`ends` is where the bytes of each row end in `pages`, `shape` and `width` are shape and size of a decoded row."""
        self._decoder, self._pages, self._ends, self._names = decoder, pages, ends, names
        self._target, self._shape, self._width, self._device = target, shape, width, device

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def target(self) -> Tensor:
        return self._target

    @property
    def max_batch(self) -> int:
        return rows_at_once((len(self), *self._shape))

    def __len__(self) -> int:
        return len(self._target)

    def batches(self, size: int, shuffle: torch.Generator | None = None, first: int = 0) -> Iterator[Batch]:
        """Yields the same batches as `Split.batches`.

        Raises:
            DataError: pictures are damaged; the message has their paths.
        """
        order = windows(len(self), window_rows(self._width), shuffle)
        batches = cut(((window.index(),) for window in order), size, first * size)
        threads = max(1, len(os.sched_getaffinity(0)))
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(threads, "headrace-decode") as pool:
            try:
                for (index,) in batches:
                    waiting.append(pool.submit(self._batch, index))
                    if len(waiting) >= threads + AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for one in waiting:
                    one.cancel()

    def _batch(self, index: Tensor) -> Batch:
        rows = index.tolist()
        starts = [int(self._ends[row - 1]) if row else 0 for row in rows]
        values = [self._pages[start : int(self._ends[row])] for start, row in zip(starts, rows, strict=True)]
        decoded = torch.from_numpy(self._decoder.decode(values, [self._names[row] for row in rows], 1))
        return (decoded.to(self._device, non_blocking=True),), self._target[index].to(self._device, non_blocking=True)

"""Rows to train on: batches in a reproducible order, wherever the rows are stored. B: rows in a batch. N: all rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from headrace.models.onnx_inference import rows_at_once

Batch = tuple[tuple[Tensor, ...], Tensor]
"""Inputs, each `(B, ...)`, and targets `(B, ...)`, on the device that trains."""
StepFunction = Callable[[Batch, float | Tensor, bool], Tensor]
"""Trains on a batch, given its weight and whether it is the last one before the optimizer's step; returns the loss."""
Columns = tuple[Tensor, ...]
"""Inputs and targets of the same rows."""

WINDOW_ROWS = 2**20
"""Most rows in a shuffle window; a smaller table is shuffled as a whole."""
WINDOW_BYTES = 256 * 2**20
"""Most bytes, encoded, in a shuffle window."""
BLOCKS = 64
"""Blocks of consecutive rows in a window."""


class Rows(Protocol):
    """Rows of a split, in memory or in files."""

    @property
    def device(self) -> torch.device: ...

    @property
    def target(self) -> Tensor:
        """Targets of all rows `(N, ...)`: on the device, or mapped from a file."""
        ...

    @property
    def max_batch(self) -> int:
        """Most rows that are evaluated together; few of large images."""
        ...

    def __len__(self) -> int: ...

    def batches(self, size: int, shuffle: torch.Generator | None = None, first: int = 0) -> Iterator[Batch]:
        """Yields every row once, starting with batch `first`, in the order that `shuffle` determines, or in stored order."""
        ...


@dataclass
class Split:
    """Inputs, each `(N, ...)`, and targets `(N, ...)` on the device. A batch is one gather, without a DataLoader."""

    inputs: tuple[Tensor, ...]
    target: Tensor

    @property
    def device(self) -> torch.device:
        return self.target.device

    @property
    def max_batch(self) -> int:
        return min(rows_at_once(part.shape) for part in self.inputs)

    def __len__(self) -> int:
        return len(self.target)

    def batches(self, size: int, shuffle: torch.Generator | None = None, first: int = 0) -> Iterator[Batch]:
        """Yields batches. Shuffled rows are gathered batch by batch: index_select takes a third to a seventh of the time of
        indexing with `[]`, and no longer than permuting all rows at once, which would hold them twice."""
        if shuffle is None:
            for start in range(first * size, len(self), size):
                yield tuple(part[start : start + size] for part in self.inputs), self.target[start : start + size]
            return
        order = windows(len(self), window_rows(row_bytes((*self.inputs, self.target))), shuffle)
        for (index,) in cut(((window.index().to(self.device),) for window in order), size, first * size):
            yield tuple(part.index_select(0, index) for part in self.inputs), self.target.index_select(0, index)


@dataclass(frozen=True)
class Window:
    """Rows that are read together: blocks of consecutive rows, and the order of all rows in them."""

    blocks: tuple[tuple[int, int], ...]
    """First row, and the one after the last, of each block."""
    order: Tensor | None
    """Positions in the concatenated blocks `(rows,)`; None for stored order."""

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.blocks)

    def index(self) -> Tensor:
        """Returns the numbers of the rows, in order, `(rows,)`."""
        if self.order is not None and len(self.blocks) == 1:
            return self.order + self.blocks[0][0] if self.blocks[0][0] else self.order
        stored = torch.cat([torch.arange(start, stop) for start, stop in self.blocks])
        return stored if self.order is None else stored[self.order]


def row_bytes(tensors: Iterable[Tensor]) -> int:
    """Returns the number of bytes of a row in all of the tensors together."""
    return sum(tensor.element_size() * math.prod(tensor.shape[1:]) for tensor in tensors)


def window_rows(row_bytes: int) -> int:
    """Returns the number of rows in a shuffle window, for rows of `row_bytes` bytes."""
    return max(BLOCKS, min(WINDOW_ROWS, WINDOW_BYTES // max(1, row_bytes)))


def windows(rows: int, size: int, shuffle: torch.Generator | None) -> Iterator[Window]:
    """Yields windows with every row once, in an order that depends only on `shuffle`; in stored order without it.

    A table of at most `size` rows is one window, shuffled as a whole. From a larger one, blocks of consecutive rows are drawn
    at random, and the rows of as many blocks as fit into a window are shuffled (CorgiPile: Xu et al. 2022,
    https://doi.org/10.1145/3514221.3526150): a disk reads long blocks, and each batch still has rows from the whole table.
    """
    if shuffle is None:
        for start in range(0, rows, size):
            yield Window(((start, min(start + size, rows)),), None)
        return
    if rows <= size:
        yield Window(((0, rows),), torch.randperm(rows, generator=shuffle))
        return
    block = size // BLOCKS
    for drawn in torch.split(torch.randperm(math.ceil(rows / block), generator=shuffle), BLOCKS):
        blocks = tuple((start, min(start + block, rows)) for start in (drawn * block).tolist())
        read = sum(stop - start for start, stop in blocks)
        yield Window(blocks, torch.randperm(read, generator=shuffle))


def cut(pieces: Iterable[Columns], size: int, skip: int = 0) -> Iterator[Columns]:
    """Yields batches `(B, ...)` of `size` rows across the borders of pieces, the last one shorter, without the first `skip`
    rows."""
    rest: Columns | None = None
    for piece in pieces:
        start = min(skip, len(piece[0]))
        skip -= start
        if rest is not None:
            start = size - len(rest[0])
            joined = tuple(torch.cat([a, b[:start]]) for a, b in zip(rest, piece, strict=True))
            if len(joined[0]) < size:
                rest = joined
                continue
            yield joined
        rest = None
        while start < len(piece[0]):
            batch = tuple(part[start : start + size] for part in piece)
            start += size
            if len(batch[0]) < size:
                rest = batch
            else:
                yield batch
    if rest is not None:
        yield rest

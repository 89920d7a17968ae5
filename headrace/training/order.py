"""The order in which an epoch sees its rows: the same wherever they lie, so that the weights are too. B: rows in a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW_ROWS = 2**20
"""Most rows that are shuffled among each other; a smaller table is shuffled as a whole."""
WINDOW_BYTES = 256 * 2**20
"""Most that they may take, encoded."""
BLOCKS = 64
"""Runs of neighbouring rows in a window."""
Piece = tuple[Tensor, ...]


@dataclass(frozen=True)
class Window:
    """Rows that are read together: runs of neighbours, then their order."""

    blocks: tuple[tuple[int, int], ...]
    """First row and the one after the last, of each run."""
    within: Tensor | None
    """Places in the runs as they follow each other `(rows,)`; None: as they lie."""

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.blocks)

    def index(self) -> Tensor:
        """Numbers of the rows, in their order `(rows,)`."""
        if self.within is not None and len(self.blocks) == 1:
            return self.within + self.blocks[0][0] if self.blocks[0][0] else self.within
        lying = torch.cat([torch.arange(start, stop) for start, stop in self.blocks])
        return lying if self.within is None else lying[self.within]


def window_rows(row_bytes: int) -> int:
    """How many rows of `row_bytes` bytes are shuffled among each other."""
    return max(BLOCKS, min(WINDOW_ROWS, WINDOW_BYTES // max(1, row_bytes)))


def windows(rows: int, size: int, shuffle: torch.Generator | None) -> Iterator[Window]:
    """Every row once, in an order that `shuffle` alone decides; as they lie without it.

    A table of at most `size` rows is one window, shuffled as a whole. In a larger one, runs of neighbours are drawn at random,
    and the rows of as many runs as fit into a window are shuffled among each other (CorgiPile: Xu et al. 2022,
    https://doi.org/10.1145/3514221.3526150): a disk reads runs, and yet each batch has rows from all over the table.
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


def cut(pieces: Iterable[Piece], size: int, skip: int = 0) -> Iterator[Piece]:
    """Batches `(B, ...)` of `size` rows, across the borders of pieces, the last one shorter; without the first `skip` rows."""
    rest: Piece | None = None
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

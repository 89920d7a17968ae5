"""Rows preprocessed once, in place of once an epoch: what is the same for a row each time is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.models.served import ScaleImage, ScaleTable, ServedModel
from headrace.recipe.training import TrainConfig
from headrace.training.order import window_rows
from headrace.training.rows import Rows, Split, row_bytes

ROW_BY_ROW = (ScaleImage, ScaleTable)
"""Preprocessing that learns nothing and treats each row by itself, so that the bits are those of a batch."""
CHUNK_ROWS = 4096


@contextmanager
def preprocessed(model: ServedModel, config: TrainConfig, *splits: Rows) -> Iterator[tuple[Rows, ...]]:
    """Within the block `model.raw` takes the rows that this gives; after it, again those that a client sends.

    The rows come back as they are where they change in every epoch (augmentation), lie in files, or would take too much.
    """
    chosen = [split for split in splits if isinstance(split, Split)]
    if len(chosen) < len(splits) or config.augment or not is_row_by_row(model) or not all(len(split) for split in splits):
        yield splits
        return
    if not all(is_one_window(model, split) for split in chosen):
        yield splits
        return
    done = tuple(run_ahead(model, split) for split in chosen)
    model.is_preprocessed = True
    try:
        yield done
    finally:
        model.is_preprocessed = False


def is_row_by_row(model: ServedModel) -> bool:
    """Whether `raw` is preprocessing, then the network, and the first of these can be done ahead."""
    return isinstance(model.preprocess, ROW_BY_ROW) and type(model).raw is ServedModel.raw


@torch.no_grad()
def run_ahead(model: ServedModel, rows: Split) -> Split:
    """The rows as the network takes them, on their device."""
    chunks = [model.preprocess(*inputs) for inputs, _ in rows.batches(CHUNK_ROWS)]
    return Split(tuple(torch.cat(parts) for parts in zip(*chunks, strict=True)), rows.target)


@torch.no_grad()
def is_one_window(model: ServedModel, rows: Split) -> bool:
    """Whether an epoch shuffles all rows among each other, before and after: wider ones would be shuffled in another order."""
    first = [part[:1] for part in rows.inputs]
    widths = [row_bytes((*parts, rows.target)) for parts in (first, model.preprocess(*first))]
    return all(len(rows) <= window_rows(width) for width in widths)

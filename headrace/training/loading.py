"""Loads a prepared split as rows to train on: on the device if they fit, else in files. N: all rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from headrace.console import bar, report
from headrace.data.chunks import open_chunks
from headrace.models.schema import Schema
from headrace.models.served import ScaleColour, ScaleImage, ScaleTable, ServedModel
from headrace.recipe.recipe import Recipe
from headrace.recipe.training import TrainConfig
from headrace.runtime.memory import free_memory
from headrace.task_types.base import RowDecoder, TaskType
from headrace.training.decoding import RowsToDecode
from headrace.training.memmap import ArrayFile, MappedRows
from headrace.training.rows import Rows, Split, row_bytes, window_rows

if TYPE_CHECKING:
    import pandas as pd

MEMORY_DIVISOR = 4
"""A split may take a fourth of the device's free memory; the network, gradients and the other split need the rest."""
DISK_DIVISOR = 2
"""Decoded rows may take half of the free disk."""
ROW_WISE = (ScaleImage, ScaleColour, ScaleTable)
"""Preprocessing that has nothing to learn and processes each row independently, so that the bits are those of a batch."""
CHUNK_ROWS = 4096
"""Rows that are preprocessed at once."""


def load_rows(path: Path, task_type: TaskType, schema: Schema, recipe: Recipe, device: torch.device, folder: Path) -> Rows:
    """Loads and encodes the rows of the split at `path`. If the task type supports it, they are read in chunks, and stored in
    unnamed files in `folder` if they do not fit on the device; batches are the same in both cases.

    Raises:
        DataError: a value cannot be encoded, or a file is damaged.
        OSError: the disk is full.
    """
    import pandas as pd

    if task_type.learner(recipe) is None:
        return to_device(pd.read_parquet(path), task_type, schema, recipe, device)
    # data.columns was applied by `prepare`, and names columns of the source
    chunks = open_chunks([path], recipe.data.model_copy(update={"columns": None}))
    rows: _RowsInMemory | _RowsInFiles | RowsToDecode | None = None
    with bar(f"encoding {path.stem}", chunks.rows) as progress:
        for frame in chunks.frames():
            head = frame.iloc[:1]
            if rows is None:
                like = (*task_type.encode(head, schema, recipe).values(), task_type.targets(head, schema, recipe))
                rows = _storage_for(like, chunks.rows, recipe, device, folder, task_type.row_decoder(recipe))
            if isinstance(rows, RowsToDecode):
                rows.add(frame, task_type.targets(frame, schema, recipe))
            else:
                rows.add((*task_type.encode(frame, schema, recipe).values(), task_type.targets(frame, schema, recipe)))
            progress.update(int(frame.index[-1]) + 1)
    assert rows is not None, "a split has rows"
    return rows.done()


def to_device(frame: pd.DataFrame, task_type: TaskType, schema: Schema, recipe: Recipe, device: torch.device) -> Split:
    """Encodes all rows of a table and moves them to the device."""
    inputs = task_type.encode(frame, schema, recipe)
    return Split(
        tuple(torch.from_numpy(array).to(device) for array in inputs.values()),
        torch.from_numpy(task_type.targets(frame, schema, recipe)).to(device),
    )


class _RowsInMemory:
    """Rows on the device."""

    def __init__(self, like: list[torch.Tensor], rows: int, device: torch.device) -> None:
        self._tensors = [torch.empty((rows, *one.shape[1:]), dtype=one.dtype, device=device) for one in like]
        self._added = 0

    def add(self, arrays: tuple[NDArray[Any], ...]) -> None:
        for tensor, array in zip(self._tensors, arrays, strict=True):
            tensor[self._added : self._added + len(array)] = torch.from_numpy(array)
        self._added += len(arrays[-1])

    def done(self) -> Rows:
        return Split(tuple(self._tensors[:-1]), self._tensors[-1])


class _RowsInFiles:
    """Rows in files."""

    def __init__(self, arrays: int, device: torch.device, folder: Path) -> None:
        self._files = [ArrayFile(folder) for _ in range(arrays)]
        self._device = device

    def add(self, arrays: tuple[NDArray[Any], ...]) -> None:
        for file, array in zip(self._files, arrays, strict=True):
            file.append(array)

    def done(self) -> Rows:
        *inputs, target = [file.mapped() for file in self._files]
        return MappedRows(inputs, target, self._device)


def _storage_for(
    arrays: tuple[NDArray[Any], ...],
    rows: int,
    recipe: Recipe,
    device: torch.device,
    folder: Path,
    decoder: RowDecoder | None,
) -> _RowsInMemory | _RowsInFiles | RowsToDecode:
    """Returns storage for `rows` rows like these: on the device if they fit, else in files, unless they can be decoded in each
    epoch and the disk has no room for them."""
    like = [torch.from_numpy(array) for array in arrays]
    size = rows * row_bytes(like)
    if size <= memory_on(device, recipe):
        return _RowsInMemory(like, rows, device)
    if decoder is not None and size > _disk_for(decoder, folder):
        report(f"{size / 1e9:.1f} GB when decoded, more than data.image.cache: each batch is decoded in each epoch")
        return RowsToDecode(decoder, like, device, folder)
    return _RowsInFiles(len(like), device, folder)


def _disk_for(decoder: RowDecoder, folder: Path) -> int:
    """Returns how many bytes decoded rows may take on disk."""
    if decoder.cache is not None:
        return decoder.cache
    folder.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder).free // DISK_DIVISOR


def memory_on(device: torch.device, recipe: Recipe) -> int:
    """Returns how many bytes a split may take on the device: `data.memory`, or a part of what is free."""
    if recipe.data.memory:
        return int(recipe.data.memory)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // MEMORY_DIVISOR
    return int(free_memory()) // MEMORY_DIVISOR // recipe.train.processes  # each process holds all rows


# --- preprocessing once instead of in every epoch ---------------------------------------------------------------------


@contextmanager
def preprocessed(model: ServedModel, config: TrainConfig, *splits: Rows) -> Iterator[tuple[Rows, ...]]:
    """Preprocesses rows once instead of in every epoch. Within the block, `model.raw` takes the rows that are yielded.

    Yields the rows unchanged if they differ in each epoch (augmentation), are in files, or would be too large.
    """
    held = [split for split in splits if isinstance(split, Split)]
    if len(held) < len(splits) or config.augment or not is_row_wise(model) or not all(len(split) for split in splits):
        yield splits
        return
    if not all(is_one_window(model, split) for split in held):
        yield splits
        return
    done = tuple(preprocess_rows(model, split) for split in held)
    model.is_preprocessed = True
    try:
        yield done
    finally:
        model.is_preprocessed = False


def is_row_wise(model: ServedModel) -> bool:
    """Returns whether `raw` is preprocessing followed by the network, and the preprocessing can be done beforehand."""
    return isinstance(model.preprocess, ROW_WISE) and type(model).raw is ServedModel.raw


@torch.no_grad()
def preprocess_rows(model: ServedModel, rows: Split) -> Split:
    """Returns the rows as inputs of the network, on their device."""
    chunks = [model.preprocess(*inputs) for inputs, _ in rows.batches(CHUNK_ROWS)]
    return Split(tuple(torch.cat(parts) for parts in zip(*chunks, strict=True)), rows.target)


@torch.no_grad()
def is_one_window(model: ServedModel, rows: Split) -> bool:
    """Returns whether all rows are one shuffle window before and after: wider rows would come in another order."""
    first = [part[:1] for part in rows.inputs]
    widths = [row_bytes((*parts, rows.target)) for parts in (first, model.preprocess(*first))]
    return all(len(rows) <= window_rows(width) for width in widths)

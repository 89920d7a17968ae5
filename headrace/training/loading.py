"""From a prepared part to rows that train: on the device where they fit, else in files. N: all rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from headrace.console import bar
from headrace.data.chunks import free_memory, open_chunks
from headrace.models.schema import Schema
from headrace.recipe.recipe import Recipe
from headrace.task_types.base import TaskType
from headrace.training.memmap import ArrayFile, MappedRows
from headrace.training.rows import Rows, Split, row_bytes

if TYPE_CHECKING:
    import pandas as pd

SHARE = 4
"""Of the device's free memory, the part that a split may take; networks, gradients and the other split come beside it."""


def load_rows(path: Path, kind: TaskType, schema: Schema, recipe: Recipe, device: torch.device, folder: Path) -> Rows:
    """The rows of the part at `path`, encoded. For a kind that learns piece by piece they are read so, and lie in files
    without a name in `folder` where the device cannot hold them; either way a batch is the same.

    Raises:
        DataError: a value that cannot be encoded, a damaged file.
        DiskFull: as `headrace.files.is_disk_full` tells: no space is left for the files.
    """
    import pandas as pd

    if kind.learner(recipe) is None:
        return to_device(pd.read_parquet(path), kind, schema, recipe, device)
    # The columns are those that were prepared, not those that landed.
    chunks = open_chunks([path], recipe.data.model_copy(update={"columns": None}))
    rows: _Held | _Filed | None = None
    with bar(f"encoding {path.stem}", chunks.rows) as progress:
        for frame in chunks.frames():
            arrays = (*kind.encode(frame, schema, recipe).values(), kind.targets(frame, schema, recipe))
            rows = rows or _room(arrays, chunks.rows, recipe, device, folder)
            rows.add(arrays)
            progress.move(int(frame.index[-1]) + 1)
    assert rows is not None, "a part has rows"
    return rows.done()


def to_device(frame: pd.DataFrame, kind: TaskType, schema: Schema, recipe: Recipe, device: torch.device) -> Split:
    """All rows of a table, encoded, on the device."""
    inputs = kind.encode(frame, schema, recipe)
    return Split(
        tuple(torch.from_numpy(array).to(device) for array in inputs.values()),
        torch.from_numpy(kind.targets(frame, schema, recipe)).to(device),
    )


class _Held:
    """Rows on the device."""

    def __init__(self, like: list[torch.Tensor], rows: int, device: torch.device) -> None:
        self._tensors = [torch.empty((rows, *one.shape[1:]), dtype=one.dtype, device=device) for one in like]
        self._done = 0

    def add(self, arrays: tuple[NDArray[Any], ...]) -> None:
        for tensor, array in zip(self._tensors, arrays, strict=True):
            tensor[self._done : self._done + len(array)] = torch.from_numpy(array)
        self._done += len(arrays[-1])

    def done(self) -> Rows:
        return Split(tuple(self._tensors[:-1]), self._tensors[-1])


class _Filed:
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


def _room(arrays: tuple[NDArray[Any], ...], rows: int, recipe: Recipe, device: torch.device, folder: Path) -> _Held | _Filed:
    """Where `rows` rows like these have room."""
    like = [torch.from_numpy(array) for array in arrays]
    fits = rows * row_bytes(like) <= room_on(device, recipe)
    return _Held(like, rows, device) if fits else _Filed(len(like), device, folder)


def room_on(device: torch.device, recipe: Recipe) -> int:
    """Bytes that a split may take there: what the recipe allows, or a part of what is free."""
    if recipe.data.memory:
        return int(recipe.data.memory)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // SHARE
    return int(free_memory()) // SHARE // recipe.train.processes  # each of which holds all rows

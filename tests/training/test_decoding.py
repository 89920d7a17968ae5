"""Pictures that are decoded again in each epoch: the same batches as decoded once, in memory or in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.errors import DataError
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_of
from headrace.training import rows as rows_module
from headrace.training.decoding import DecodedRows
from headrace.training.loading import load_rows
from headrace.training.memmap import MappedRows
from headrace.training.rows import Rows, Split
from tests.bento_projects import fitted, make_recipe
from tests.picture_files import COLOURS, file_of, noisy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names, rng = list(COLOURS), np.random.default_rng(0)
    found = [
        {"path": f"{i}", "image": file_of(noisy(COLOURS[names[i % 3]], *rng.integers(5, 20, 2), i)), "y": names[i % 3]}
        for i in range(301)
    ]
    path = tmp_path_factory.mktemp("prepared") / "train.parquet"
    pd.DataFrame(found).to_parquet(path, index=False)
    return path


def recipe_of(**data: Any) -> Recipe:
    image = {"size": [6, 5], **data.pop("image", {})}
    return make_recipe("image-classification", image=image, **data)


def loaded(prepared: Path, folder: Path, recipe: Recipe) -> Rows:
    schema = fitted(pd.read_parquet(prepared), recipe)
    return load_rows(prepared, task_type_of(recipe.task), schema, recipe, CPU, folder)


@pytest.mark.parametrize("window", [None, 64])
def test_batches_are_the_same_wherever_pixels_are(
    window: int | None, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if window is not None:  # as for a set that is larger than a shuffle window
        monkeypatch.setattr(rows_module, "WINDOW_ROWS", window)
    memory = loaded(prepared, tmp_path, recipe_of())
    mapped = loaded(prepared, tmp_path, recipe_of(memory="10KB"))
    decoded = loaded(prepared, tmp_path, recipe_of(memory="10KB", image={"cache": "10KB"}))
    assert (type(memory), type(mapped), type(decoded)) == (Split, MappedRows, DecodedRows)
    assert len(memory) == len(mapped) == len(decoded) == 301
    assert memory.max_batch == mapped.max_batch == decoded.max_batch
    for shuffle, first in ((None, 0), (3, 0), (3, 4)):

        def order() -> torch.Generator | None:
            return None if shuffle is None else torch.Generator().manual_seed(shuffle)  # noqa: B023

        batches = [list(rows.batches(32, order(), first)) for rows in (memory, mapped, decoded)]
        assert len(batches[0]) == len(batches[1]) == len(batches[2]) == 10 - first
        for one, two, three in zip(*batches, strict=True):
            assert torch.equal(one[1], two[1]) and torch.equal(one[1], three[1])
            assert torch.equal(one[0][0], two[0][0]) and torch.equal(one[0][0], three[0][0])
    assert torch.equal(memory.target, decoded.target)


def test_an_epoch_that_is_broken_off_ends_its_threads(prepared: Path, tmp_path: Path) -> None:
    import threading

    rows = loaded(prepared, tmp_path, recipe_of(memory="10KB", image={"cache": 0}))
    batches = rows.batches(8, torch.Generator().manual_seed(0))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace-decode")]


def test_a_damaged_picture_ends_the_epoch_with_its_name(prepared: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(prepared)
    frame.loc[200, "image"] = frame.loc[200, "image"][:50]
    frame.to_parquet(tmp_path / "train.parquet", index=False)
    rows = loaded(tmp_path / "train.parquet", tmp_path, recipe_of(memory="10KB", image={"cache": 0}))
    with pytest.raises(DataError, match=r"1 pictures cannot be decoded:\n  200: "):
        list(rows.batches(32))


def test_large_pictures_are_evaluated_in_small_batches(tmp_path: Path) -> None:
    def rows(*shape: int) -> int:
        return Split((torch.zeros((1, *shape), dtype=torch.uint8),), torch.zeros(1)).max_batch

    assert rows(28, 28) == rows(50) == 4096, "as before"
    assert rows(64, 64, 3) == 341 and rows(3000, 3000, 3) == 1

"""What decides which rows a model has seen, kept with each version: a champion is judged only on rows that it has not seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from headrace.data.splits import key_columns, key_positions
from headrace.errors import DataError
from headrace.files import read_json
from headrace.recipe.splits import SplitConfig

if TYPE_CHECKING:
    from headrace.recipe.recipe import Recipe

RECORD, KEYS = "split.json", "test_keys.npy"
"""Files in the folder `split` of a recipe's artifacts: the record, and the key of each test row."""


class SplitRecord(BaseModel):
    """How the rows of one data version were divided."""

    model_config = ConfigDict(frozen=True)
    split: SplitConfig
    keys: str
    """Hash of the columns that the position of a row depends on."""
    last: str | float | None = None
    """With a split by time: the first value of the test rows."""
    seen_below: float | None = None
    """With a split by `per_class`: no row with a higher position is in the training or validation set."""

    @property
    def sha256(self) -> str:
        """Identifies the division of rows; rows that are added to the data do not change it."""
        return hashlib.sha256(self.model_dump_json(exclude={"seen_below"}).encode()).hexdigest()


def record_of(recipe: Recipe, columns: list[str], last: Any = None, seen_below: float | None = None) -> SplitRecord:
    """Describes the split of a table with these columns; `last` is the first value of the test rows of a split by time."""
    keys = hashlib.sha256(json.dumps(key_columns(columns, recipe)).encode()).hexdigest()[:16]
    return SplitRecord(split=recipe.data.split, keys=keys, last=_plain(last), seen_below=seen_below)


def read_record(folder: Path) -> SplitRecord | None:
    """Reads the record; None where an earlier version of Headrace prepared them."""
    found = read_json(folder / RECORD)
    return None if found is None else SplitRecord.model_validate(found)


def read_keys(folder: Path) -> NDArray[np.uint64] | None:
    """Reads the key of each test row, `(rows,)`; None where an earlier version of Headrace prepared them."""
    path = folder / KEYS
    return np.load(path) if path.exists() else None


def unseen_rows(theirs: SplitRecord, ours: SplitRecord, keys: NDArray[np.uint64], same_data: bool) -> NDArray[np.bool_]:
    """Returns which of our test rows, whose keys are given, are certainly in neither the training nor the validation set of a
    model that was trained with their split, `(rows,)`.

    Args:
        same_data: whether both were trained from the same version of the data.

    Raises:
        DataError: it cannot be known.
    """
    everything = np.ones(len(keys), dtype=bool)
    if theirs == ours and (same_data or ours.split.per_class is None):
        return everything
    if theirs.split.time is not None:
        return everything & _is_later(theirs, ours)
    if theirs.split.predefined is not None:
        if theirs.split.predefined == ours.split.predefined:
            return everything
        raise DataError("its test rows were those that another column or value of the data marks")
    if theirs.keys != ours.keys:
        raise DataError("its rows were divided by the values of other columns")
    place = key_positions(keys, theirs.split.seed)
    if theirs.split.per_class is not None:
        return place > (1.0 if theirs.seen_below is None else theirs.seen_below)
    return place < theirs.split.test


def has_seen_test_rows(theirs: SplitRecord, ours: SplitRecord) -> bool:
    """Whether a model that was trained with their split may have been trained on our test rows.

    It may have been as soon as the splits differ, except for a split by time whose test rows are as late as theirs or later.
    """
    if theirs.split.time is None or ours.split.time is None:
        return theirs != ours if ours.split.per_class is None else True
    try:
        return not _is_later(theirs, ours)
    except DataError:
        return True


def _is_later(theirs: SplitRecord, ours: SplitRecord) -> bool:
    """Whether our test rows have a value in time that none of their training rows has."""
    ours_time, theirs_time = ours.split.time, theirs.split.time
    if (
        ours_time is None
        or theirs_time is None
        or ours_time.column != theirs_time.column
        or type(ours.last) is not type(theirs.last)
    ):
        raise DataError(f"its test rows were those of the last {getattr(theirs_time, 'column', None)}")
    assert ours.last is not None and theirs.last is not None
    return bool(ours.last >= theirs.last)  # type: ignore[operator]


def _plain(value: Any) -> str | float | None:
    """Converts a number, a text or a time to JSON; times keep their order as texts."""
    if value is None:
        return None
    if isinstance(value, bool | int | float | np.integer | np.floating):
        return float(value)
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)

"""Reads the labels of rows that have any number of them: lists, texts with a separator, or columns of true and false."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from headrace.recipe.recipe import Recipe

Label = str | int
TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""What a column of true and false may hold, as text in lower case."""
MOST_NAMED = 5
"""Labels that a message names."""


def labels_in(frame: pd.DataFrame, recipe: Recipe) -> set[Label]:
    """Returns the distinct labels of these rows; of columns of true and false, those that are true in a row.

    Raises:
        DataError: a value cannot be read.
    """
    if recipe.data.target_columns:
        return {name for name, given in _columns(frame, recipe).items() if given.any()}
    return {label for labels in label_lists(frame, recipe) for label in labels}


def known_labels(found: list[Label], recipe: Recipe) -> list[Label]:
    """Returns the labels that a model learns, sorted; `found` are those of the training rows.

    Raises:
        DataError: there are none, or no training row has the label of a target column.
    """
    where = f"column {', '.join(recipe.data.targets)}"
    if missing := [name for name in recipe.data.target_columns if name not in found]:
        raise DataError(
            f"no training row has the label {missing[0]!r}, so no model could learn it",
            where=f"column {missing[0]}",
            hint="add rows with this label (headrace data add), or remove the column from data.target",
        )
    if not found:
        raise DataError("no training row has a label", where=where, hint="use data with labels, or set data.target")
    return found


def multi_hot(frame: pd.DataFrame, labels: list[Label], recipe: Recipe) -> NDArray[np.float32]:
    """Returns 1 for each label that a row has and 0 for the others, `(rows, labels)`. Labels that are not in `labels` are left
    out; `unknown_labels` counts their rows.

    Raises:
        DataError: a value cannot be read.
    """
    if recipe.data.target_columns:
        columns = _columns(frame, recipe)
        return np.stack([columns[str(label)] for label in labels], axis=1).astype(np.float32)
    index = {label: i for i, label in enumerate(labels)}
    found = np.zeros((len(frame), len(labels)), dtype=np.float32)
    for row, given in enumerate(label_lists(frame, recipe)):
        found[row, [index[label] for label in given if label in index]] = 1
    return found


def unknown_labels(frame: pd.DataFrame, labels: list[Label], recipe: Recipe) -> tuple[list[Label], int]:
    """Returns the labels of these rows that are not in `labels`, and how many rows have one."""
    if recipe.data.target_columns:
        return [], 0
    known, rows, found = set(labels), 0, dict[Label, None]()
    for given in label_lists(frame, recipe):
        new = [label for label in given if label not in known]
        found |= dict.fromkeys(new)
        rows += bool(new)
    return list(found), rows


def label_lists(frame: pd.DataFrame, recipe: Recipe) -> Iterable[list[Label]]:
    """Yields the labels of each row, of a target column with lists or with `data.label_separator`.

    Raises:
        DataError: a value is missing, or not a list of texts or whole numbers.
    """
    column, separator = recipe.data.target, recipe.data.label_separator
    for row, value in enumerate(frame[column].tolist()):
        missing = value is None or value != value
        if separator is not None:
            texts = [] if missing else [part.strip() for part in str(value).split(separator)]
            yield list(dict.fromkeys(text for text in texts if text))
        elif missing:
            raise DataError(
                f"row {row + 1} has no value; a row without labels has an empty list",
                where=f"column {column}",
                hint=f"write [], or add {column} to data.drop_missing",
            )
        else:
            yield _parsed(value, row, column)


def refuse_lists(found: set[Label], recipe: Recipe) -> None:
    """
    Raises:
        DataError: the labels of a task with one label per row are lists.
    """
    lists = [label for label in found if isinstance(label, str) and label.startswith("[") and _is_json_list(label)]
    if lists:
        raise DataError(
            f"the target holds lists, for example {min(lists)[:80]}, and {recipe.task!r} predicts one label per row",
            where=f"column {recipe.data.target}",
            hint=f"task: multilabel-{recipe.task}",
        )


def _is_json_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except json.JSONDecodeError:
        return False


def _parsed(value: Any, row: int, column: str) -> list[Label]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, list) or not all(isinstance(x, str) or type(x) is int for x in found):
        raise DataError(
            f"row {row + 1} holds {str(value)[:80]!r}, which is not a list of labels",
            where=f"column {column}",
            hint='set data.label_separator, if labels are separated by a character such as |; or write lists, as ["a", "b"]',
        )
    return list(dict.fromkeys(found))


def _columns(frame: pd.DataFrame, recipe: Recipe) -> dict[str, NDArray[np.bool_]]:
    """Returns which rows have the label of each target column, `(rows,)`."""
    return {name: _truths(frame, name) for name in recipe.data.target_columns}


def _truths(frame: pd.DataFrame, name: str) -> NDArray[np.bool_]:
    import pandas as pd

    codes, distinct = pd.factorize(frame[name], use_na_sentinel=False)
    known = [TRUTHS.get(str(value).lower()) for value in distinct.tolist()]
    if None in known:
        place = known.index(None)
        row, value = int((codes == place).argmax()), distinct[place]
        shown = repr(value) if isinstance(value, str) else value
        raise DataError(
            f"row {row + 1} holds {shown}, and a column of labels holds true and false, or 1 and 0",
            where=f"column {name}",
            hint=f"correct the values, or remove {name} from data.target",
        )
    return np.array(known, dtype=bool)[codes]

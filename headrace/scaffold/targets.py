"""The columns that a new recipe predicts: one, several numbers, or any number of labels per row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import RecipeError, UsageError
from headrace.scaffold.columns import kind_of
from headrace.task_types.label_sets import TRUTHS

if TYPE_CHECKING:
    import pandas as pd

LABELS, TEXT_LABELS = "multilabel-classification", "multilabel-text-classification"
SEPARATORS = ("|", ";")
"""Signs between labels that are recognised; a comma is often part of a label."""
LEAST_SEPARATED = 0.1
"""Share of the rows that have several labels, in a column of separated labels."""
MOST_LABELS = 200
LABEL_WORDS = 3
"""Words that a label has at most, on average."""
LEAST_ROWS_OF_LABEL = 5
"""A label with fewer rows may be in one part of the split only."""


@dataclass(frozen=True)
class Target:
    """What a recipe predicts."""

    columns: list[str]
    task: str
    why: str
    """Why it is this task."""
    separator: str | None = None
    """What separates the labels of a row (`data.label_separator`)."""
    has_column_each: bool = False
    """Whether each number, or each label, is a column of its own."""

    @property
    def is_multilabel(self) -> bool:
        return self.task in (LABELS, TEXT_LABELS)

    @property
    def may_be_empty(self) -> bool:
        """Whether an empty value is a value: a row without labels."""
        return self.separator is not None

    @property
    def in_yaml(self) -> str | list[str]:
        """The value of `data.target`: a list where each column is a target of its own."""
        return self.columns if self.has_column_each else self.columns[0]


def split_names(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns the names of columns in values of `--target`: each is a column, or several with commas between them."""
    found: list[str] = []
    for name in given:
        parts = [part.strip() for part in name.split(",")]
        found += parts if name not in known and len(parts) > 1 else [name]
    return list(dict.fromkeys(found))


def label_lists(values: pd.Series[Any], separator: str | None) -> list[list[Any]]:
    """Returns the labels of each row that has a value."""
    texts = [str(value) for value in values.dropna().tolist()]
    if separator is None:
        return [json.loads(text) for text in texts]
    return [[part.strip() for part in text.split(separator) if part.strip()] for text in texts]


def holds_lists(values: pd.Series[Any]) -> bool:
    """Returns whether all values are lists of labels in JSON."""
    texts = [str(value) for value in values.dropna().tolist()]
    return bool(texts) and all(text.startswith("[") for text in texts) and all(map(_is_label_list, set(texts)))


def separator_of(values: pd.Series[Any]) -> str | None:
    """Returns the sign between the labels of a row, if a column has labels with one, as `late|paid`."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values):
        return None
    texts = values.dropna().astype(str)
    texts = texts[texts.str.strip() != ""]  # no label
    return next((sign for sign in SEPARATORS if _is_separated(texts, sign)), None)


def _is_separated(texts: pd.Series[str], sign: str) -> bool:
    if not len(texts) or texts.str.contains(sign, regex=False).mean() < LEAST_SEPARATED:
        return False
    distinct = [[part.strip() for part in text.split(sign)] for text in texts.unique().tolist()]
    labels = Counter(part for parts in distinct for part in set(parts))
    words = sum(len(label.split()) for label in labels) / len(labels)
    return "" not in labels and len(labels) <= MOST_LABELS and words <= LABEL_WORDS and max(labels.values()) > 1


def _is_label_list(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(one, str) or type(one) is int for one in found)


def is_truth(values: pd.Series[Any]) -> bool:
    """Returns whether a column holds true and false, or 1 and 0, and both of them."""
    present = {TRUTHS.get(str(value).lower()) for value in values.dropna().unique().tolist()}
    return present == {True, False}


def several_targets(frame: pd.DataFrame, names: list[str], task: str | None, only_text: bool, where: str) -> Target:
    """Returns what a recipe with several columns predicts: labels if all hold true and false, otherwise numbers.

    Args:
        task: what the user has chosen.
        only_text: whether there is a text and no other feature.

    Raises:
        UsageError: the task does not predict several columns.
        RecipeError: a column holds neither, or one label only.
    """
    if task not in (None, "regression", LABELS, TEXT_LABELS):
        raise UsageError(
            f"{task} predicts one column, and --target names {len(names)}",
            where="--task",
            hint=f"name one column, or use --task regression for numbers, or {LABELS} for columns of true and false",
        )
    others = [name for name in names if not is_truth(frame[name])]
    if task != "regression" and (task is not None or not others):
        if others:
            raise RecipeError(_no_truth(frame[others[0]], others[0]), where=where, hint=_without(others[0], names))
        _require_rows({name: true_rows(frame[name]) for name in names}, where, names)
        return _columns_of_labels(names, task or (TEXT_LABELS if only_text else LABELS))
    for name in names:
        _require_numbers(frame[name], name, names, where)
    return Target(names, "regression", f"each of {', '.join(names)} holds numbers", has_column_each=True)


def _columns_of_labels(names: list[str], task: str) -> Target:
    which = f"each of {', '.join(names)} is" if len(names) > 1 else f"{names[0]} is"
    return Target(names, task, f"{which} true or false", has_column_each=True)


def labels_target(values: pd.Series[Any], name: str, task: str | None, only_text: bool, where: str) -> Target | None:
    """Returns what a recipe with one column of several labels per row predicts; None if the column has one value per row.

    Raises:
        RecipeError: the user has chosen such a task, and the column cannot have its labels.
    """
    if task not in (None, LABELS, TEXT_LABELS):
        return None
    chosen = task or (TEXT_LABELS if only_text else LABELS)
    other = "" if task is not None else "; --task classification for one label per row"
    if holds_lists(values):
        return Target([name], chosen, f"{name} holds lists of labels{other}")
    if (sign := separator_of(values)) is not None:
        return Target([name], chosen, f"{name} holds labels with {sign!r} between them{other}", sign)
    if task is None:
        return None
    if is_truth(values):
        return _columns_of_labels([name], chosen)
    raise RecipeError(
        f"column {name!r} does not hold several labels per row, for example {values.dropna().iloc[0]!r}",
        where=where,
        hint='use lists as ["late", "paid"], texts as late|paid, or a column of true and false for each label',
    )


def rare_label_note(values: pd.Series[Any], separator: str | None) -> list[str]:
    """Returns a note on labels that few rows have, if there are any."""
    counts = Counter(label for labels in label_lists(values, separator) for label in set(labels))
    rare = {label: count for label, count in sorted(counts.items(), key=lambda one: one[1]) if count < LEAST_ROWS_OF_LABEL}
    if not rare:
        return []
    return [f"labels that fewer than {LEAST_ROWS_OF_LABEL} rows have, and that may not be learned: {_counted(rare)}"]


def multilabel_entropy(frame: pd.DataFrame, target: Target) -> float:
    """Returns the log loss of always answering with the share of rows that have each label."""
    shares = np.clip(_shares(frame, target), 1e-12, 1 - 1e-12)
    return float(np.mean(-(shares * np.log(shares) + (1 - shares) * np.log(1 - shares))))


def scaled_error(frame: pd.DataFrame, names: Iterable[str]) -> float:
    """Returns the error of always answering with the median of each target, in its standard deviations."""
    numbers = [frame[name].astype(float) for name in names]
    return float(np.mean([(values - values.median()).abs().mean() / (values.std(ddof=0) or 1.0) for values in numbers]))


def _shares(frame: pd.DataFrame, target: Target) -> list[float]:
    if target.has_column_each:
        return [true_rows(frame[name]) / len(frame) for name in target.columns]
    counts = Counter(label for labels in label_lists(frame[target.columns[0]], target.separator) for label in set(labels))
    return [count / len(frame) for count in counts.values()]


def true_rows(values: pd.Series[Any]) -> int:
    """Returns the number of rows that are true."""
    return sum(TRUTHS.get(str(value).lower()) is True for value in values.dropna().tolist())


def _require_rows(rows: dict[str, int], where: str, names: list[str]) -> None:
    rare = {name: count for name, count in rows.items() if count < LEAST_ROWS_OF_LABEL}
    if rare:
        raise RecipeError(
            f"fewer than {LEAST_ROWS_OF_LABEL} rows have the label: {_counted(rare)}",
            where=where,
            hint=f"add rows, or leave it out: {_targets([name for name in names if name not in rare])}",
        )


def _require_numbers(values: pd.Series[Any], name: str, names: list[str], where: str) -> None:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise RecipeError(
            f"several targets are numbers, or all of them true and false; column {name!r} holds {kind_of(values)}, "
            f"for example {_example(values)}",
            where=where,
            hint=_without(name, names),
        )
    if values.dropna().nunique() < 2:
        raise RecipeError(
            f"column {name!r} has {values.dropna().nunique()} distinct value(s); there is nothing to predict",
            where=where,
            hint=_without(name, names),
        )


def _no_truth(values: pd.Series[Any], name: str) -> str:
    return f"column {name!r} does not hold true and false, or 1 and 0, for example {_example(values)}"


def _example(values: pd.Series[Any]) -> str:
    present = values.dropna()
    return repr(str(present.iloc[0])[:40]) if len(present) else "nothing"


def _without(name: str, names: list[str]) -> str:
    return f"leave it out: {_targets([other for other in names if other != name])}"


def _targets(names: list[str]) -> str:
    return " ".join(f"--target {name!r}" for name in names) or "--target COLUMN"


def _counted(rows: dict[str, int]) -> str:
    shown = ", ".join(f"{label!r} ({count})" for label, count in list(rows.items())[:10])
    return shown + (f" and {len(rows) - 10:,} more" if len(rows) > 10 else "")

"""What a recipe for pictures predicts: a label, any number of labels, a number, or several numbers of each picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import DataError, RecipeError, UsageError, near_miss
from headrace.scaffold.columns import CLASSES_LIMIT, kind_of
from headrace.scaffold.parts import FEWEST, class_lines, gate_of, labels_expectation, require_classes, yaml_text
from headrace.scaffold.recipe_text import gate_section
from headrace.scaffold.targets import LABELS, Target, label_lists, labels_target, rare_label_note, several_targets, true_rows

if TYPE_CHECKING:
    import pandas as pd

IMAGE_TASKS = {
    "classification": "image-classification",
    "regression": "image-regression",
    LABELS: "multilabel-image-classification",
}
"""The task of pictures for what a task of tables predicts."""
ROWS_OF_CLASS = 5
"""Whole numbers that each have at least about this many pictures are classes."""


@dataclass(frozen=True)
class PictureTarget:
    """What is predicted, and the targets of the pictures."""

    target: Target
    frame: pd.DataFrame
    """The columns of the target, of the pictures that have one."""
    gaps: dict[str, int]
    """Pictures without a target, by its column."""

    @property
    def task(self) -> str:
        return IMAGE_TASKS[self.target.task]

    @property
    def is_numbers(self) -> bool:
        return self.target.task == "regression"

    @property
    def classes(self) -> Counter[str]:
        """Pictures of each class or label; none where numbers are predicted."""
        columns = self.target.columns
        if self.is_numbers:
            return Counter()
        if self.target.is_multilabel and self.target.has_column_each:
            return Counter({name: true_rows(self.frame[name]) for name in columns})
        if self.target.is_multilabel:
            rows = label_lists(self.frame[columns[0]], self.target.separator)
            return Counter(str(label) for labels in rows for label in set(labels))
        return Counter(str(value) for value in self.frame[columns[0]].tolist())

    @property
    def summary(self) -> str:
        """What the pictures have, for the head of the recipe."""
        if self.is_numbers:
            return "with " + ", ".join(self.target.columns)
        what = "with {:,} labels" if self.target.is_multilabel else "of {:,} classes"
        return what.format(len(self.classes))

    def lines(self) -> list[str]:
        """Returns what is said on the terminal."""
        if not (self.is_numbers or self.target.is_multilabel):
            return [*class_lines(self.classes), *([f"{self.task}: {self.target.why}"] if "--task" in self.target.why else [])]
        why = f"{self.task}: {self.target.why}"
        if self.target.is_multilabel:
            counts = ", ".join(f"{label} {count:,}" for label, count in self.classes.most_common(10))
            more = f", and {len(self.classes) - 10:,} more" if len(self.classes) > 10 else ""
            note = [] if self.target.has_column_each else rare_label_note(self.frame.iloc[:, 0], self.target.separator)
            return [f"{len(self.classes):,} labels: {counts}{more}", why, *note]
        numbers = [
            f"{name}: {values.min():g} to {values.max():g}, median {values.median():g}" for name, values in self.frame.items()
        ]
        return [*numbers, why]

    def facts(self) -> dict[str, Any]:
        """Returns what `--json` prints."""
        if not self.is_numbers:
            return {"classes": dict(self.classes.most_common())}
        return {
            "targets": {
                str(name): {"min": float(values.min()), "median": float(values.median()), "max": float(values.max())}
                for name, values in self.frame.items()
            }
        }

    def data_lines(self) -> list[str]:
        """Returns the lines of the section `data`."""
        lines = [f"  target: {yaml_text(self.target.in_yaml)}"]
        lines += [f"  label_separator: {yaml_text(self.target.separator)}"] if self.target.separator else []
        if self.gaps:
            lines.append(f"  drop_missing: {yaml_text(list(self.gaps))}   # {max(self.gaps.values()):,} rows have no target")
        return lines

    def expect_lines(self) -> list[str]:
        """Returns the section `expect`: the known labels, or bounds of the numbers."""
        if not (self.is_numbers or self.target.is_multilabel):
            return labels_expectation(self.target.columns[0], self.classes)
        if self.target.is_multilabel:
            return ["expect: []"]
        from headrace.data.validation.suite import propose_suite

        found = [one for one in propose_suite(self.frame, self.target.columns) if one.get("column") in self.target.columns]
        if not found:
            return ["expect: []"]
        return [
            "expect:   # every batch has to meet these; names as in Great Expectations",
            *(f"  - {yaml_text(one)}" for one in found),
        ]

    def gate_lines(self) -> list[str]:
        """Returns the section `gate`: a candidate has to beat a constant."""
        is_plain = not (self.is_numbers or self.target.is_multilabel)
        return gate_of(self.classes) if is_plain else gate_section(self.frame, self.target)


def target_of(frame: pd.DataFrame, names: Sequence[str], task: str | None, data: Path) -> PictureTarget:
    """Returns what the pictures of a table, or of folders, have as targets.

    Args:
        frame: the columns `names` of all pictures.
        task: what the user has chosen.

    Raises:
        UsageError: the task is unknown, or does not predict these columns.
        RecipeError, DataError: the columns cannot be predicted.
    """
    chosen = _chosen(task)
    target = _target(frame, list(names), chosen, str(data))
    gaps = {} if target.may_be_empty else {name: int(frame[name].isna().sum()) for name in target.columns}
    gaps = {name: count for name, count in gaps.items() if count}
    found = PictureTarget(target, frame.dropna(subset=list(gaps)) if gaps else frame, gaps)
    if not (found.is_numbers or target.is_multilabel):
        require_classes(found.classes, "pictures", data)
    elif len(found.frame) < FEWEST:
        raise DataError(
            f"{len(found.frame)} pictures with a target; training and testing require at least {FEWEST}",
            where=str(data),
            hint="add more",
        )
    return found


def _chosen(task: str | None) -> str | None:
    known = {**{name: name for name in IMAGE_TASKS}, **{image: name for name, image in IMAGE_TASKS.items()}}
    if task is not None and task not in known:
        raise UsageError(
            f"task {task!r} does not take pictures; {near_miss(task, list(IMAGE_TASKS.values()))}",
            where="--task",
            hint=f"use {', '.join(IMAGE_TASKS.values())}",
        )
    return known[task] if task is not None else None


def _target(frame: pd.DataFrame, names: list[str], task: str | None, where: str) -> Target:
    import pandas as pd

    if len(names) > 1:
        return several_targets(frame, names, task, False, where)
    values = frame[names[0]]
    if (found := labels_target(values, names[0], task, False, where)) is not None:
        return found
    is_number = pd.api.types.is_numeric_dtype(values) and kind_of(values) != "true/false"
    if task == "regression" and not is_number:
        raise RecipeError(
            f"column {names[0]!r} holds {kind_of(values)}, and a regression predicts numbers",
            where=where,
            hint="name a column of numbers: --target COLUMN",
        )
    if task is not None:
        return Target(names, task, "as --task says")
    present = values.dropna()
    few = max(CLASSES_LIMIT, len(present) // ROWS_OF_CLASS)
    if is_number and not (bool((present % 1 == 0).all()) and present.nunique() <= few):
        return Target(names, "regression", f"{names[0]} holds numbers, {present.nunique():,} of them distinct")
    hint = "; --task image-regression to predict a number" if is_number else ""
    return Target(names, "classification", f"{names[0]} has {present.nunique():,} distinct values{hint}")

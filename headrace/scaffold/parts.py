"""What the recipes that `headrace new` proposes have in common."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import DataError, UsageError
from headrace.scaffold.columns import LABELS_LIMIT

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
"""Names of folders that divide a set, and of the parts that they become."""
FEWEST = 20
"""Fewest files: with fewer a split would be empty."""
FEW = 5
"""Classes with fewer files are named: hardly one of them is in the test set."""
NAMED = 10


@dataclass(frozen=True)
class Scaffold:
    """A recipe that was written, and what was found in the data."""

    path: Path
    lines: list[str]
    """For the terminal."""
    facts: dict[str, Any]
    """For `--json`."""


def require_classes(classes: Counter[str], what: str, data: Path) -> None:
    """
    Raises:
        DataError: there is one class only, or there are too few files.
    """
    if len(classes) < 2:
        raise DataError(
            f"all {sum(classes.values()):,} {what} have the class {next(iter(classes), 'none')!r}: there is nothing to learn",
            where=str(data),
            hint="use a folder with a folder for each of at least two classes",
        )
    if sum(classes.values()) < FEWEST:
        raise DataError(
            f"{sum(classes.values())} {what}; training and testing require at least {FEWEST}",
            where=str(data),
            hint="add more",
        )


def label_of_folders(targets: Sequence[str], data: Path) -> str:
    """Returns the name of the column that gets the name of the folder of each file.

    Raises:
        UsageError: several columns are named.
    """
    if len(targets) > 1:
        raise UsageError(
            f"the name of a folder is the only label of its files, and --target names {len(targets)} columns",
            where=str(data),
            hint="name one, or a table with a column for each in --data",
        )
    return targets[0] if targets else "label"


def class_lines(classes: Counter[str]) -> list[str]:
    """Returns lines about the classes, the largest first, and about those with few files."""
    shown = ", ".join(f"{label} {count:,}" for label, count in classes.most_common(NAMED))
    more = f", and {len(classes) - NAMED:,} more" if len(classes) > NAMED else ""
    lines = [f"{len(classes):,} classes: {shown}{more}"]
    few = sorted(label for label, count in classes.items() if count < FEW)
    if few:
        names = ", ".join(few[:NAMED]) + (", …" if len(few) > NAMED else "")
        lines.append(f"{len(few):,} classes have fewer than {FEW} files, too few to tell whether they are learned: {names}")
    return lines


def divided(labels: Sequence[str]) -> dict[str, str] | None:
    """Returns the part that each of these folders is, if they are those of a divided set (train, test); else None."""
    parts = {label: PARTS[label.lower()] for label in labels if label.lower() in PARTS}
    if len(parts) == len(labels) and {"train", "test"} <= set(parts.values()) and len(set(parts.values())) == len(parts):
        return parts
    return None


def head_of(name: str, task: str, found: str) -> list[str]:
    """Returns the first lines of a recipe."""
    return [
        f"# Written by `headrace new` from {found}. Everything is a proposal: edit it,",
        f"# then run `headrace check {name}`.",
        f"name: {name}",
        f"task: {task}",
    ]


def gate_of(classes: Counter[str]) -> list[str]:
    """Returns the section `gate`: a candidate has to beat the most frequent label."""
    return gate_lines(*majority_bound(classes.most_common(1)[0][1] / sum(classes.values())))


def majority_bound(majority: float) -> tuple[str, str, str]:
    """Returns a metric, its bound, and what the most frequent label reaches: the share `majority` of the rows."""
    bound = math.floor(majority * 10_000 + 1) / 10_000
    # If nearly all rows have one label, accuracy cannot distinguish a model from a constant.
    require = f"> {majority:.4f}" if bound >= 1 else f">= {bound:.4f}"
    return "accuracy", require, f"the most frequent label alone reaches {majority:.4f}"


def gate_lines(metric: str, require: str, why: str) -> list[str]:
    """Returns the section `gate` with one metric and its bound."""
    return [
        "gate:",
        f'  require: {{{metric}: "{require}"}}   # {why}; make it as strict as you need',
        f"  beat_champion: {{metric: {metric}, margin: 0.0, confidence: 0.95}}",
        "  approval: auto   # or: manual",
    ]


def yaml_text(value: Any) -> str:
    """Returns a value in YAML's flow style, on one line, quoted where YAML would parse it differently."""
    import yaml

    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_text(k)}: {yaml_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(yaml_text(item) for item in value) + "]"
    # As an element of a list, so that commas and brackets are quoted too.
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
    return text if text.isprintable() else json.dumps(value)  # a JSON string is a YAML string


def labels_expectation(target: str, classes: Counter[str]) -> list[str]:
    """Returns the section `expect`: the known labels, where they are not too many to list."""
    if len(classes) > LABELS_LIMIT:
        return ["expect: []"]
    one = {"type": "expect_column_values_to_be_in_set", "column": target, "value_set": sorted(classes)}
    return ["expect:   # every batch has to meet these; names as in Great Expectations", f"  - {yaml_text(one)}"]


def split_line(parts: dict[str, str] | None) -> str:
    """Returns the split: the folders' own, or by shares."""
    if parts is None:
        return "  split: {test: 0.2, validation: 0.1, seed: 7}"
    return "  split: {predefined: {column: part, test: test}, validation: 0.1}"

"""Writes a first recipe from a data file: infers the task, proposes expectations, a model, training and a gate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import RecipeError, UsageError, near_miss
from headrace.files import write_text
from headrace.project import Project
from headrace.recipe.recipe import NAME_PATTERN, load_recipe, parse_recipe

if TYPE_CHECKING:
    import pandas as pd

CLASSES_LIMIT = 20
"""A target of whole numbers with at most so many distinct values is taken for classes."""
LABELS_LIMIT = 1000
"""A text target with more distinct values is taken for an identifier or free text."""
LEVELS_LIMIT = 1000
"""A text column with more distinct values says little about rows to come."""
RANGE = re.compile(r".+\[\d+\]", re.DOTALL)
"""In `data.columns`, `pixel[784]` stands for many columns."""


def write_recipe(name: str, data_file: Path, target: str, project: Project) -> Path:
    """Writes `recipes/<name>.yaml` for the table in `data_file` (`headrace new NAME --data FILE --target COLUMN`).

    Columns that identify a row, or that no model could use, are left out, and the recipe says so.

    Raises:
        UsageError: a bad name, or such a recipe exists.
        DataError: the file cannot be read.
        RecipeError: the target is no column (with the near miss), has gaps only, or cannot be predicted.
    """
    from headrace.data.formats.files import read_file
    from headrace.data.tables import to_frame

    path = project.recipes / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name):
        suggestion = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        hint = f"such as {suggestion!r}" if re.fullmatch(NAME_PATTERN, suggestion) else "such as 'churn'"
        raise UsageError(
            f"{name!r} is no name for a recipe: a letter, then letters, digits and dashes, all lower-case, at most 40",
            where="NAME",
            hint=f"choose another name, {hint}",
        )
    if path.exists():
        raise UsageError(
            f"recipe {name!r} exists already", where=str(path), hint=f"choose another name, or remove {path} first"
        )
    frame = to_frame(read_file(data_file))
    if target not in frame.columns:
        raise RecipeError(
            f"no column {target!r}; {near_miss(target, map(str, frame.columns[:200]))}",
            where=str(data_file),
            hint="name one of the file's columns: --target COLUMN",
        )
    gaps = int(frame[target].isna().sum())
    rows = frame[frame[target].notna()]
    task = _task(rows[target], data_file)
    if RANGE.fullmatch(target):
        raise RecipeError(
            f"column {target!r} reads as a range of columns in a recipe",
            where=str(data_file),
            hint="rename that column in the file",
        )
    left_out = {str(c): why for c in rows.columns if c != target and (why := _useless(rows[c]))}
    kept = [str(c) for c in rows.columns if str(c) not in left_out]
    if kept == [target]:
        raise RecipeError(
            f"no column but {target!r} could be learned from", where=str(data_file), hint="bring a file with feature columns"
        )
    text = _text(name, _source(data_file, project), target, task, rows[kept], left_out, gaps)
    parse_recipe(text, f"recipes/{name}.yaml")  # nothing is written that would not load
    write_text(path, text)
    load_recipe(name, project)
    return path


def _task(target: pd.Series[Any], data_file: Path) -> str:
    import pandas as pd

    distinct = target.unique()
    if len(distinct) < 2:
        raise RecipeError(
            f"column {target.name!r} holds {len(distinct)} distinct value(s), so there is nothing to predict",
            where=str(data_file),
            hint="name another column: --target COLUMN",
        )
    if pd.api.types.is_datetime64_any_dtype(target):
        raise RecipeError(
            f"column {target.name!r} holds times, which no task predicts",
            where=str(data_file),
            hint="name a column of numbers or texts: --target COLUMN",
        )
    if not pd.api.types.is_numeric_dtype(target):
        if len(distinct) > min(LABELS_LIMIT, max(CLASSES_LIMIT, len(target) // 2)):
            raise RecipeError(
                f"column {target.name!r} holds {len(distinct)} distinct texts on {len(target)} rows: no classes",
                where=str(data_file),
                hint="name a column with few distinct values: --target COLUMN",
            )
        return "classification"
    return "classification" if len(distinct) <= CLASSES_LIMIT and bool((target % 1 == 0).all()) else "regression"


def _useless(values: pd.Series[Any]) -> str | None:
    """Why a column is left out, or None."""
    import pandas as pd

    if RANGE.fullmatch(str(values.name)):
        return "has a name that a recipe reads as a range of columns; rename it in the file"
    distinct = values.nunique()
    if distinct == 0:
        return "holds nothing"
    if distinct == 1 and not values.isna().any():
        return "holds one value only"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "holds times; split by it (data.split.time) rather than learn from it"
    is_text = not pd.api.types.is_numeric_dtype(values)
    if is_text and distinct > max(20, len(values) // 2):
        return "differs on nearly every row, so it names rows rather than describing them"
    if is_text and distinct > LEVELS_LIMIT:
        return f"holds {distinct:,} distinct texts"
    return "counts the rows" if _counts_rows(values) else None


def _counts_rows(values: pd.Series[Any]) -> bool:
    """Whole numbers, all different, each one more than the last or named as an identifier."""
    import pandas as pd

    if not pd.api.types.is_integer_dtype(values) or len(values) < 10 or not values.is_unique:
        return False
    named = re.search(r"(^|_|\b)(id|index|key|rowid|unnamed.*)$", str(values.name).lower()) is not None
    return named or bool((values.diff().dropna() == 1).all())


def _source(data_file: Path, project: Project) -> str:
    """Relative to the project where the file lies in it, so that the recipe works in another clone."""
    absolute = data_file.expanduser().resolve()
    root = project.root.resolve()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)


def _text(name: str, source: str, target: str, task: str, frame: pd.DataFrame, left_out: dict[str, str], gaps: int) -> str:
    from headrace.data.validation.suite import propose_suite

    rows = len(frame)
    columns = [str(column) for column in frame.columns]
    categorical = [c for c in columns if c != target and not _is_numeric(frame[c])]
    lines = [
        f"# Written by `headrace new` from {rows:,} rows of {_one_line(Path(source).name)}. All of it is a proposal: edit it,",
        f"# then run `headrace check {name}`.",
        f"name: {name}",
        f"task: {task}",
        "data:",
        f"  source: {_yaml(source)}",
        f"  target: {_yaml(target)}",
    ]
    lines += [f"  # left out: {_one_line(column)} {why}" for column, why in left_out.items()]
    lines += _wrapped("  columns:", columns)
    if categorical:
        lines += _wrapped("  categorical:", categorical)
    if gaps:
        lines.append(f"  drop_missing: [{_yaml(target)}]   # {gaps:,} rows have no target")
    lines += [
        "  split: {test: 0.2, validation: 0.1, seed: 7}",
        "expect:   # every batch has to meet these; native Great Expectations names",
    ]
    lines += [f"  - {_yaml(expectation)}" for expectation in propose_suite(frame, target)]
    lines += [*_training(rows), *_gate(frame[target], task), "serve: {replicas: 2, runtime: onnx}", ""]
    return "\n".join(lines)


def _training(rows: int) -> list[str]:
    """Wider and longer with more rows; batches such that an epoch has about a hundred steps."""
    batch = next(size for size in (16, 32, 64, 128, 256, 512) if rows < 100 * size or size == 512)
    hidden = "[32]" if rows < 1_000 else "[64, 32]" if rows < 10_000 else "[128, 64]"
    epochs = 60 if rows < 2_000 else 30 if rows < 20_000 else 10
    return [
        f"model: {{name: mlp, hidden: {hidden}}}",
        f"train: {{epochs: {epochs}, batch_size: {batch}, learning_rate: 0.002, early_stopping: {{patience: 5}}}}",
    ]


def _gate(target: pd.Series[Any], task: str) -> list[str]:
    """A candidate has to beat what needs no model: always the commonest label, or always the median."""
    import math

    if task == "classification":
        majority = float(target.value_counts(normalize=True).iloc[0])
        bound = math.floor(majority * 10_000 + 1) / 10_000
        # Where one label holds nearly all rows, accuracy cannot tell a model from a constant.
        metric, require, why = (
            "accuracy",
            f"> {majority:.4f}" if bound >= 1 else f">= {bound:.4f}",
            f"always the commonest label would reach {majority:.4f}",
        )
    else:
        error = float((target - target.median()).abs().mean())
        metric, require, why = "mae", f"< {error:.6f}", f"always the median would reach {error:.4g}"
        if error < 1e-4:  # such small units need an exponent, and r2 has no unit
            metric, require, why = "r2", "> 0", "always the mean would reach 0"
    return [
        "gate:",
        f'  require: {{{metric}: "{require}"}}   # {why}; raise it to what you need',
        f"  beat_champion: {{metric: {metric}, margin: 0.0, confidence: 0.95}}",
        "  approval: auto   # or: manual",
    ]


def _is_numeric(values: pd.Series[Any]) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_numeric_dtype(values))


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line, quoted wherever YAML would read it as something else."""
    import yaml

    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    # Dumped inside a list, so that commas and brackets are quoted too.
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
    return text if text.isprintable() else json.dumps(value)  # a JSON string is a YAML string


def _wrapped(head: str, names: list[str]) -> list[str]:
    """A list on as many lines as it needs."""
    lines, line = [], f"{head} ["
    for i, name in enumerate(names):
        item = _yaml(name) + (", " if i < len(names) - 1 else "]")
        if len(line) + len(item) > 120:
            lines.append(line.rstrip())
            line = "    "
        line += item
    return [*lines, line.rstrip()]


def _one_line(text: str) -> str:
    """Safe in a comment: nothing that would end the line."""
    return "".join(c if c.isprintable() else "?" for c in text)

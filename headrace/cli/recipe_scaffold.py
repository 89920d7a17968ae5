"""Writes a recipe for a data file: infers the task, and proposes expectations, a model, training settings and a gate."""

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
"""A target of whole numbers with at most this many distinct values is treated as classes."""
LABELS_LIMIT = 1000
"""A text target with more distinct values is treated as an identifier or free text."""
LEVELS_LIMIT = 1000
"""A text column with more distinct values is not useful for new rows."""
RANGE = re.compile(r".+\[\d+\]", re.DOTALL)
"""In `data.columns`, `pixel[784]` means 784 columns."""


def write_recipe(name: str, data_file: Path, target: str, project: Project) -> Path:
    """Writes `recipes/<name>.yaml` for the table in `data_file` (`headrace new NAME --data FILE --target COLUMN`).

    Columns that identify a row or are useless to a model are excluded, with a comment in the recipe.

    Raises:
        UsageError: the name is invalid, or the recipe exists.
        DataError: the file cannot be read.
        RecipeError: the target is unknown (with the near miss), has no values, or cannot be predicted.
    """
    from headrace.data.formats.files import read_file
    from headrace.data.tables import to_frame

    path = project.recipes / f"{name}.yaml"
    if not re.fullmatch(NAME_PATTERN, name):
        suggestion = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        example = suggestion if re.fullmatch(NAME_PATTERN, suggestion) else "churn"
        raise UsageError(
            f"invalid recipe name {name!r}: use up to 40 lower-case letters, digits and dashes, with a letter first",
            where="NAME",
            hint=f"choose another name, for example {example!r}",
        )
    if path.exists():
        raise UsageError(f"recipe {name!r} already exists", where=str(path), hint=f"choose another name, or remove {path}")
    frame = to_frame(read_file(data_file))
    if target not in frame.columns:
        raise RecipeError(
            f"unknown column {target!r}; {near_miss(target, map(str, frame.columns[:200]))}",
            where=str(data_file),
            hint="name a column of the file: --target COLUMN",
        )
    gaps = int(frame[target].isna().sum())
    rows = frame[frame[target].notna()]
    task = _task(rows[target], data_file)
    if RANGE.fullmatch(target):
        raise RecipeError(
            f"the name {target!r} would mean a range of columns in a recipe",
            where=str(data_file),
            hint="rename the column in the file",
        )
    excluded = {str(c): why for c in rows.columns if c != target and (why := _reason_to_exclude(rows[c]))}
    kept = [str(c) for c in rows.columns if str(c) not in excluded]
    if kept == [target]:
        raise RecipeError(
            f"no column except {target!r} is useful to a model", where=str(data_file), hint="use a file with feature columns"
        )
    text = _text(name, _source(data_file, project), target, task, rows[kept], excluded, gaps)
    parse_recipe(text, f"recipes/{name}.yaml")  # an invalid recipe is not written
    write_text(path, text)
    load_recipe(name, project)
    return path


def _task(target: pd.Series[Any], data_file: Path) -> str:
    import pandas as pd

    distinct = target.unique()
    if len(distinct) < 2:
        raise RecipeError(
            f"column {target.name!r} has {len(distinct)} distinct value(s); there is nothing to predict",
            where=str(data_file),
            hint="name another column: --target COLUMN",
        )
    if pd.api.types.is_datetime64_any_dtype(target):
        raise RecipeError(
            f"column {target.name!r} holds times, which no task can predict",
            where=str(data_file),
            hint="name a column of numbers or texts: --target COLUMN",
        )
    if not pd.api.types.is_numeric_dtype(target):
        if len(distinct) > min(LABELS_LIMIT, max(CLASSES_LIMIT, len(target) // 2)):
            raise RecipeError(
                f"column {target.name!r} has {len(distinct)} distinct texts in {len(target)} rows, too many for classes",
                where=str(data_file),
                hint="name a column with few distinct values: --target COLUMN",
            )
        return "classification"
    return "classification" if len(distinct) <= CLASSES_LIMIT and bool((target % 1 == 0).all()) else "regression"


def _reason_to_exclude(values: pd.Series[Any]) -> str | None:
    """Returns why a column is excluded, or None."""
    import pandas as pd

    if RANGE.fullmatch(str(values.name)):
        return "has a name that would mean a range of columns; rename it in the file"
    distinct = values.nunique()
    if distinct == 0:
        return "is empty"
    if distinct == 1 and not values.isna().any():
        return "has a single value"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "holds times; can be used to split (data.split.time), not as a feature"
    is_text = not pd.api.types.is_numeric_dtype(values)
    if is_text and distinct > max(20, len(values) // 2):
        return "differs in nearly every row, so it identifies rows"
    if is_text and distinct > LEVELS_LIMIT:
        return f"has {distinct:,} distinct texts"
    return "numbers the rows" if _numbers_rows(values) else None


def _numbers_rows(values: pd.Series[Any]) -> bool:
    """Whether the values are distinct whole numbers that increase by one, or have a name of ids."""
    import pandas as pd

    if not pd.api.types.is_integer_dtype(values) or len(values) < 10 or not values.is_unique:
        return False
    named = re.search(r"(^|_|\b)(id|index|key|rowid|unnamed.*)$", str(values.name).lower()) is not None
    return named or bool((values.diff().dropna() == 1).all())


def _source(data_file: Path, project: Project) -> str:
    """Returns a path relative to the project for a file in it, so that the recipe works in other clones."""
    absolute = data_file.expanduser().resolve()
    root = project.root.resolve()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)


def _text(name: str, source: str, target: str, task: str, frame: pd.DataFrame, excluded: dict[str, str], gaps: int) -> str:
    from headrace.data.validation.suite import propose_suite

    rows = len(frame)
    columns = [str(column) for column in frame.columns]
    categorical = [c for c in columns if c != target and not _is_numeric(frame[c])]
    lines = [
        f"# Written by `headrace new` from {rows:,} rows of {_one_line(Path(source).name)}. Everything is a proposal: edit it,",
        f"# then run `headrace check {name}`.",
        f"name: {name}",
        f"task: {task}",
        "data:",
        f"  source: {_yaml(source)}",
        f"  target: {_yaml(target)}",
    ]
    lines += [f"  # excluded: {_one_line(column)} {why}" for column, why in excluded.items()]
    lines += _wrapped("  columns:", columns)
    if categorical:
        lines += _wrapped("  categorical:", categorical)
    if gaps:
        lines.append(f"  drop_missing: [{_yaml(target)}]   # {gaps:,} rows have no target")
    lines += [
        "  split: {test: 0.2, validation: 0.1, seed: 7}",
        "expect:   # every batch has to meet these; names as in Great Expectations",
    ]
    lines += [f"  - {_yaml(expectation)}" for expectation in propose_suite(frame, target)]
    lines += [*_training(rows), *_gate(frame[target], task), "serve: {replicas: 2, runtime: onnx}", ""]
    return "\n".join(lines)


def _training(rows: int) -> list[str]:
    """Returns the sections `model` and `train`: a larger network and fewer epochs for more rows, about 100 steps per epoch."""
    batch = next(size for size in (16, 32, 64, 128, 256, 512) if rows < 100 * size or size == 512)
    hidden = "[32]" if rows < 1_000 else "[64, 32]" if rows < 10_000 else "[128, 64]"
    epochs = 60 if rows < 2_000 else 30 if rows < 20_000 else 10
    return [
        f"model: {{name: mlp, hidden: {hidden}}}",
        f"train: {{epochs: {epochs}, batch_size: {batch}, learning_rate: 0.002, early_stopping: {{patience: 5}}}}",
    ]


def _gate(target: pd.Series[Any], task: str) -> list[str]:
    """Returns the section `gate`: a candidate has to beat a constant, the most frequent label or the median."""
    import math

    if task == "classification":
        majority = float(target.value_counts(normalize=True).iloc[0])
        bound = math.floor(majority * 10_000 + 1) / 10_000
        # If nearly all rows have one label, accuracy cannot distinguish a model from a constant.
        metric, require, why = (
            "accuracy",
            f"> {majority:.4f}" if bound >= 1 else f">= {bound:.4f}",
            f"the most frequent label alone reaches {majority:.4f}",
        )
    else:
        error = float((target - target.median()).abs().mean())
        metric, require, why = "mae", f"< {error:.6f}", f"the median alone reaches {error:.4g}"
        if error < 1e-4:  # bounds in such small units need an exponent; r2 has no unit
            metric, require, why = "r2", "> 0", "the mean alone reaches 0"
    return [
        "gate:",
        f'  require: {{{metric}: "{require}"}}   # {why}; make it as strict as you need',
        f"  beat_champion: {{metric: {metric}, margin: 0.0, confidence: 0.95}}",
        "  approval: auto   # or: manual",
    ]


def _is_numeric(values: pd.Series[Any]) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_numeric_dtype(values))


def _yaml(value: Any) -> str:
    """Returns a value in YAML's flow style, on one line, quoted where YAML would parse it differently."""
    import yaml

    if isinstance(value, dict):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    # As an element of a list, so that commas and brackets are quoted too.
    text: str = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
    return text if text.isprintable() else json.dumps(value)  # a JSON string is a YAML string


def _wrapped(head: str, names: list[str]) -> list[str]:
    """Returns the lines of a YAML list, wrapped."""
    lines, line = [], f"{head} ["
    for i, name in enumerate(names):
        item = _yaml(name) + (", " if i < len(names) - 1 else "]")
        if len(line) + len(item) > 120:
            lines.append(line.rstrip())
            line = "    "
        line += item
    return [*lines, line.rstrip()]


def _one_line(text: str) -> str:
    """Replaces characters that would end a comment."""
    return "".join(c if c.isprintable() else "?" for c in text)

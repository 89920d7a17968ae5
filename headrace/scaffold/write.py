"""Writes a recipe for a user's own table: `headrace new`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.column_rules import ColumnRules
from headrace.errors import DataError, RecipeError, TrainingError, UsageError, near_miss
from headrace.files import write_text
from headrace.permissions import tracked_mode
from headrace.project import Project
from headrace.recipe.read import ReadConfig
from headrace.recipe.recipe import NAME_PATTERN, load_recipe, parse_recipe
from headrace.recipe.synonyms import near_model
from headrace.recipe.task_types import TABLE_MODELS
from headrace.runtime.values import ValueRule
from headrace.scaffold.columns import (
    CLASSES_LIMIT,
    LABELS_LIMIT,
    RANGE,
    Column,
    FoundRules,
    all_missing,
    find_rules,
    is_sentences,
    kind_of,
    possible_task,
    rare_labels,
    reason_to_leave_out,
)
from headrace.scaffold.recipe_text import Proposal, read_fields, recipe_text
from headrace.scaffold.sample import Sample
from headrace.scaffold.tables import Located, Reading, locate
from headrace.scaffold.targets import (
    LABELS,
    LEAST_ROWS_OF_LABEL,
    TEXT_LABELS,
    Target,
    holds_lists,
    labels_target,
    rare_label_note,
    separator_of,
    several_targets,
    split_names,
)

if TYPE_CHECKING:
    import pandas as pd

    from headrace.scaffold.comparison import Comparison

TASKS = ("classification", "regression", "text-classification", LABELS, TEXT_LABELS)
LEAST_ROWS = 20
"""With fewer rows no part of the split has enough of them."""
MOST_RARE_LABELS = 100
COMPARED = ("mlp", "lightgbm")
"""Models of which the better one is proposed."""


@dataclass(frozen=True)
class Choices:
    """What the user has said about a table, where a guess can be wrong."""

    task: str | None = None
    text: str | None = None
    time: str | None = None
    categorical: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    read: dict[str, Any] = field(default_factory=dict)
    """Fields of `data.read`."""
    missing: list[str] = field(default_factory=list)
    """Further texts that mean a missing value."""
    header: bool | None = None
    format: str | None = None
    model: str | None = "mlp"
    """The model of a table; None: the better one of a comparison."""


@dataclass(frozen=True)
class Described:
    """A table with its columns described, and how it is read."""

    located: Located
    sample: Sample
    frame: pd.DataFrame
    """The sample as the recipe reads it."""
    rules: FoundRules
    columns: list[Column]
    chosen: list[str]
    """The columns to predict, as the user names them."""
    targets: dict[str, str]
    """Columns that could be the target, each with its task."""

    @property
    def features(self) -> list[str]:
        """Names of the columns that are features, without the text."""
        return [column.name for column in self.columns if column.role == "feature"]

    @property
    def text(self) -> str | None:
        """Name of the column of the text."""
        return next((column.name for column in self.columns if column.role == "text"), None)


@dataclass(frozen=True)
class Written:
    """A recipe that was written."""

    path: Path
    task: str
    why: str
    """Why it is this task."""
    described: Described
    notes: list[str]
    """What the user should know, one line each."""
    comparison: Comparison | None = None
    """The comparison of models that chose the recipe's model."""


def write_recipe(
    name: str, data: str | Path, targets: str | Sequence[str], project: Project, choices: Choices | None = None
) -> Written:
    """Writes `recipes/<name>.yaml` for the table in `data` (`headrace new NAME --data X --target COLUMN`).

    Columns that identify a row or are useless to a model are left out, with a comment in the recipe.

    Args:
        targets: the column to predict, or several; a text may name several with commas between them.

    Raises:
        UsageError: the name is invalid, or the recipe exists.
        DataError: the table cannot be read.
        RecipeError: a target is unknown (with the near miss), has no values, or cannot be predicted; or the table has too
            few rows or nothing to learn from.
    """
    choices = choices or Choices()
    path = check_name(name, project)
    described = describe(data, project, choices, [targets] if isinstance(targets, str) else list(targets))
    where = described.located.shown
    target = _target(described, choices, where)
    task, why = target.task, target.why
    gaps, rows = _without_gaps(described.frame, target)
    _check_rows(rows, described, where)
    rows, drop_values, notes = _without_rare_labels(rows, target, described, where)
    _check_rows(rows, described, where)
    text = described.text
    if task in (TEXT_LABELS, "text-classification") and text is None:
        raise UsageError(
            "no column holds texts of several words", where="--task", hint="name the column with the text: --text COLUMN"
        )
    kept, excluded = _kept(described, target, text, choices, where)
    notes += [f"{count:,} rows have no {column}, and are left out (data.drop_missing)" for column, count in gaps.items()]
    read = described.sample.read
    if not described.sample.header:
        read = (read or ReadConfig()).model_copy(update={"names": described.sample.names})
    time = choices.time
    proposal = Proposal(
        name,
        described.located.source,
        target,
        rows[kept],
        described.sample.is_whole,
        excluded,
        gaps,
        described.sample.header,
        described.sample.format,
        read,
        _categorical(described, rows, kept, target.columns, choices),
        text,
        time,
        drop_values,
        _kept_rules(described, kept),
    )
    proposal, comparison = _with_model(proposal, choices.model)
    content = recipe_text(proposal)
    parse_recipe(content, f"recipes/{name}.yaml")  # an invalid recipe is not written
    write_text(path, content, tracked_mode(path))
    load_recipe(name, project)
    return Written(path, task, why, described, [*described.located.notes, *notes], comparison)


def _with_model(proposal: Proposal, model: str | None) -> tuple[Proposal, Comparison | None]:
    """Returns the proposal with the model that the user has chosen, or with the better one, and the comparison if there was
    one: several numbers, labels and texts have one model only.

    Raises:
        UsageError: the model is unknown.
        RecipeError: the model does not fit the task or the columns.
    """
    if model is not None:
        if model not in TABLE_MODELS:
            raise UsageError(
                f"unknown model {model!r}; {near_model(model, TABLE_MODELS)}",
                where="--model",
                hint=f"use one of {', '.join(TABLE_MODELS)}",
            )
        if model != "mlp" and proposal.target.task == "text-classification":
            raise UsageError(f"{model} reads no texts", where="--model", hint="remove --model")
        return replace(proposal, model=model), None
    target = proposal.target
    if target.task not in ("classification", "regression") or len(target.columns) > 1 or proposal.text is not None:
        return proposal, None
    from headrace.scaffold.comparison import compare, sample_of

    sample = replace(proposal, frame=sample_of(proposal.frame))  # with settings for this number of rows
    recipes = {one: parse_recipe(recipe_text(replace(sample, model=one)), proposal.name) for one in COMPARED}
    try:
        found = compare(sample.frame, recipes)
    except (DataError, TrainingError):  # `headrace run` says it, of all rows
        return proposal, None
    return (proposal, None) if found is None else (replace(proposal, model=found.best), found)


def check_name(name: str, project: Project) -> Path:
    """Returns the path of a new recipe.

    Raises:
        UsageError: the name is invalid, or the recipe exists.
    """
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
    return path


def describe(data: str | Path, project: Project, choices: Choices, targets: Sequence[str] = ()) -> Described:
    """Reads a sample of the table in `data`, and describes its columns; `targets` are values of `--target`.

    Raises:
        DataError: the table cannot be read.
        RecipeError: a column that the user names is unknown.
    """
    labels = tuple({*targets, *split_names(targets, ())})
    located = locate(str(data), project, Reading(choices.read, choices.header, choices.format, labels))
    sample = located.sample
    where = located.shown
    if not sample.table.num_rows:
        raise DataError("there are no rows", where=where, hint="use a table, or a query, with rows")
    frame: pd.DataFrame = sample.table.to_pandas()
    chosen = split_names(targets, list(map(str, frame.columns)))
    _check_names(frame, sample, choices, chosen, where)
    separator = sample.read.separator if sample.read is not None else None
    is_text = separator is not None
    given = replace(sample.rules, missing=all_missing(sample.rules.missing, choices.missing, is_text))
    if given != sample.rules:  # what the user calls missing is not a value of its column
        sample = replace(sample, rules=given)
        frame = located.read_again(sample).to_pandas()
    rules = find_rules(frame, given, choices.categorical, is_text, separator == ",")
    if rules.applied(given) != sample.rules:
        sample = replace(sample, rules=rules.applied(given))
        frame = located.read_again(sample).to_pandas()
    text = choices.text or _text_column(frame, {*choices.drop, *choices.categorical, *chosen, choices.time})
    columns = [_column(frame[name], frame, rules, replace(choices, text=text), chosen) for name in frame.columns]
    columns += [
        Column(name, "unknown", 0, 0, "left out", reason.partition(";")[0], reason.partition("; ")[2] or None)
        for name, reason in sample.left_out.items()
    ]
    possible = {str(c): task for c in frame.columns if str(c) not in choices.drop and (task := _possible(frame[c]))}
    return Described(located, sample, frame, rules, columns, chosen, possible)


def _possible(values: pd.Series[Any]) -> str | None:
    """Returns the task for a column as the target, or None if no task can predict it."""
    if holds_lists(values) or separator_of(values) is not None:
        return LABELS
    return possible_task(values)


def _check_names(frame: pd.DataFrame, sample: Sample, choices: Choices, targets: list[str], where: str) -> None:
    named = {
        "--target": targets,
        "--text": [choices.text] if choices.text else [],
        "--time": [choices.time] if choices.time else [],
        "--categorical": choices.categorical,
        "--drop": [name for name in choices.drop if name not in sample.left_out],
    }
    known = list(map(str, frame.columns))
    for option, names in named.items():
        for name in names:
            if name in known:
                continue
            reason = sample.left_out.get(name)
            what = f"column {name!r} {reason}" if reason else f"unknown column {name!r}; {near_miss(name, known[:200])}"
            header = "; the file has no header: --header if its first line has the names" if not sample.header else ""
            raise RecipeError(f"{what}{header}", where=where, hint=f"name a column of the file: {option} COLUMN")
    if ranges := [name for name in targets if RANGE.fullmatch(name)]:
        raise RecipeError(
            f"the name {ranges[0]!r} would mean a range of columns in a recipe",
            where=where,
            hint="rename the column in the file",
        )


def _column(values: pd.Series[Any], frame: pd.DataFrame, rules: FoundRules, choices: Choices, targets: list[str]) -> Column:
    name = str(values.name)
    present = values.dropna()
    example = str(present.iloc[0])[:40] if len(present) else None
    facts = (name, kind_of(values), int(values.isna().sum()), int(present.nunique()))
    note = rules.notes.get(name)
    if name in targets:
        return Column(*facts, "target", note, None, example)
    if name == choices.time:
        return Column(*facts, "time", "the rows with its latest values are the test set", None, example)
    if name == choices.text:
        return Column(*facts, "text", "learned beside the other columns, if there are any", f"--drop {name!r}", example)
    if name in choices.drop:
        return Column(*facts, "left out", "as --drop says", None, example)
    if name in choices.categorical:
        return Column(*facts, "feature", note, None, example)
    reason = reason_to_leave_out(values, len(frame))
    problem = rules.problems.get(name)
    if problem is not None and (reason is not None or kind_of(values) in ("text", "sentences")):
        return Column(*facts, "left out", problem[0], problem[1], example)
    if reason is None and kind_of(values) == "time":
        return Column(*facts, "feature", note or "its calendar parts", f"--time {name!r} to test on the latest rows", example)
    if reason is None:
        return Column(*facts, "feature", note, None, example)
    return Column(*facts, "left out", reason[0], reason[1], example)


def _target(described: Described, choices: Choices, where: str) -> Target:
    """Returns what the recipe predicts."""
    if choices.task is not None and choices.task not in TASKS:
        raise UsageError(
            f"unknown task {choices.task!r}; {near_miss(choices.task, TASKS)}", where="--task", hint=f"use {', '.join(TASKS)}"
        )
    names, frame = described.chosen, described.frame
    only_text = described.text is not None and not described.features
    if len(names) > 1:
        return several_targets(frame, names, choices.task, only_text, where)
    if (found := labels_target(frame[names[0]], names[0], choices.task, only_text, where)) is not None:
        return found
    return Target(names, *_task(described, names[0], choices, where))


def _without_gaps(frame: pd.DataFrame, target: Target) -> tuple[dict[str, int], pd.DataFrame]:
    """Returns the number of gaps of each target that has some, and the rows without gaps."""
    if target.may_be_empty:
        return {}, frame
    gaps = {name: int(frame[name].isna().sum()) for name in target.columns}
    return {name: count for name, count in gaps.items() if count}, frame[frame[target.columns].notna().all(axis=1)]


def _task(described: Described, target: str, choices: Choices, where: str) -> tuple[str, str]:
    """Returns the task for one value in each row, and why."""
    import pandas as pd

    values = described.frame[target].dropna()
    distinct = values.nunique()
    if distinct < 2:
        raise RecipeError(
            f"column {target!r} has {distinct} distinct value(s); there is nothing to predict",
            where=where,
            hint=_other_targets(described, target),
        )
    if pd.api.types.is_datetime64_any_dtype(values):
        raise RecipeError(
            f"column {target!r} holds times, which no task can predict", where=where, hint=_other_targets(described, target)
        )
    is_number = pd.api.types.is_numeric_dtype(values)
    if choices.task == "regression" and not is_number:
        raise RecipeError(
            f"column {target!r} holds texts such as {values.iloc[0]!r}, and a regression predicts numbers",
            where="--task",
            hint="use --task classification, or a rule in data.parse for numbers in another format",
        )
    if not is_number and distinct > min(LABELS_LIMIT, max(CLASSES_LIMIT, len(values) // 2)):
        raise RecipeError(
            f"column {target!r} has {distinct} distinct texts in {len(values)} rows, too many for classes",
            where=where,
            hint=_other_targets(described, target),
        )
    labels = f"{target} has {distinct:,} distinct {'numbers' if is_number else 'texts'}"
    if kind_of(values) == "true/false":
        is_number, labels = False, f"{target} is true or false"
    is_class = not is_number or (distinct <= CLASSES_LIMIT and bool((values % 1 == 0).all()))
    if choices.task is not None:
        return choices.task, "as --task says"
    if not is_class:
        return "regression", f"{target} holds numbers, {distinct:,} of them distinct"
    if described.text is not None and not described.features:
        return "text-classification", f"{labels}, and {described.text} holds the text"
    return "classification", labels + ("; --task regression to predict a number" if is_number else "")


def _other_targets(described: Described, target: str) -> str:
    others = [name for name in described.targets if name != target][:10]
    return f"name another column: --target COLUMN ({', '.join(others)})" if others else "name another column: --target COLUMN"


def _text_column(frame: pd.DataFrame, others: set[str | None]) -> str | None:
    """Returns the column of sentences; of several the one with the longest texts."""
    found = [str(name) for name in frame.columns if name not in others and is_sentences(frame[name])]
    return max(found, key=lambda name: float(frame[name].dropna().astype(str).str.len().mean()), default=None)


def _without_rare_labels(
    rows: pd.DataFrame, predicted: Target, described: Described, where: str
) -> tuple[pd.DataFrame, dict[str, list[Any]], list[str]]:
    """Returns the rows without labels that have too few of them."""
    target = predicted.columns[0]
    if predicted.is_multilabel and not predicted.has_column_each:
        return rows, {}, rare_label_note(rows[target], predicted.separator)
    if predicted.task == "regression" or predicted.has_column_each:
        return rows, {}, []
    rare = rare_labels(rows[target], LEAST_ROWS_OF_LABEL)
    shown = ", ".join(f"{label!r} ({n})" for label, n in list(rare.items())[:10])
    shown += f" and {len(rare) - 10:,} more" if len(rare) > 10 else ""
    if not rare:
        return rows, {}, []
    if not described.sample.is_whole:
        return rows, {}, [f"labels with few rows in the sample: {shown}"]
    common = rows[target].nunique() - len(rare)
    if common < 2 or len(rare) > MOST_RARE_LABELS:
        raise RecipeError(
            f"{len(rare):,} of the labels of {target!r} have fewer than {LEAST_ROWS_OF_LABEL} rows: {shown}",
            where=where,
            hint="add rows, merge these labels into one, or name another column: --target COLUMN",
        )
    left = rows[~rows[target].isin(list(rare))]
    note = f"{sum(rare.values()):,} rows are left out, as their labels have fewer than {LEAST_ROWS_OF_LABEL} rows: {shown}; "
    note += "to learn them, add rows or merge them, and edit data.drop_values"
    return left, {target: [_plain(label) for label in rare]}, [note]


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_rows(rows: pd.DataFrame, described: Described, where: str) -> None:
    if described.sample.is_whole and len(rows) < LEAST_ROWS:
        raise RecipeError(
            f"{len(rows)} rows with a target are too few to train, validate and test with",
            where=where,
            hint=f"use a table with at least {LEAST_ROWS} rows, better some hundreds",
        )


def _kept(
    described: Described, target: Target, text: str | None, choices: Choices, where: str
) -> tuple[list[str], dict[str, str]]:
    """Returns the columns that are kept, in the file's order, and why others are left out."""
    excluded = {c.name: f"{c.reason}" + (f"; {c.hint}" if c.hint else "") for c in described.columns if c.role == "left out"}
    if target.task in (TEXT_LABELS, "text-classification"):
        others = {c.name: "is left out, as a text alone decides (--task)" for c in described.columns if c.role == "feature"}
        excluded = {name: why for name, why in {**excluded, **others}.items() if name != text}
    kept = [str(name) for name in described.frame.columns if str(name) not in excluded]
    features = [name for name in kept if name not in (*target.columns, choices.time)]
    if not features:
        reasons = "; ".join(f"{name} {why}" for name, why in list(excluded.items())[:10])
        raise RecipeError(
            f"no column except {', '.join(map(repr, target.columns))} is useful to a model"
            + (f": {reasons}" if reasons else ""),
            where=where,
            hint="use a file with feature columns, or bring one in with --categorical, --text or --time",
        )
    return kept, excluded


def _categorical(described: Described, rows: pd.DataFrame, kept: list[str], targets: list[str], choices: Choices) -> list[str]:
    return [
        name
        for name in kept
        if name not in (*targets, choices.time, described.text)
        and (name in choices.categorical or kind_of(rows[name]) == "text")
    ]


def _kept_rules(described: Described, kept: list[str]) -> ColumnRules:
    """Returns the rules of the columns that are kept; a column of times without a rule is one in ISO 8601."""
    found = described.sample.rules
    times = {name: ValueRule(type="time") for name in kept if kind_of(described.frame[name]) == "time"}
    return replace(found, rules={name: rule for name, rule in {**times, **found.rules}.items() if name in kept})


__all__ = ["Choices", "Described", "Written", "check_name", "describe", "read_fields", "write_recipe"]

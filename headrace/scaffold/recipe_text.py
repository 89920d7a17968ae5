"""The text of a new recipe: its columns, expectations, model, training settings and gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.formats.column_rules import ColumnRules
from headrace.data.sources.addresses import redacted
from headrace.recipe.read import ReadConfig
from headrace.runtime.values import ValueRule
from headrace.scaffold.parts import gate_lines, head_of, majority_bound, yaml_text
from headrace.scaffold.targets import Target, multilabel_entropy, scaled_error

if TYPE_CHECKING:
    import pandas as pd

MOSTLY = 0.99
"""Share of rows that have to meet an expectation that comes from a sample of the rows."""
TEXT_TOKENS = (64, 128, 256, 512)
"""Lengths of texts, in tokens."""


@dataclass(frozen=True)
class Proposal:
    """What a recipe is written from."""

    name: str
    source: str
    target: Target
    frame: pd.DataFrame
    """The sample with the columns that are kept, without rows that have no target."""
    is_whole: bool
    excluded: dict[str, str]
    """Columns that are left out, by name, each with the reason."""
    gaps: dict[str, int]
    """Rows without a target, by its column."""
    header: bool = True
    format: str | None = None
    read: ReadConfig | None = None
    categorical: list[str] = field(default_factory=list)
    text: str | None = None
    time: str | None = None
    drop_values: dict[str, list[Any]] = field(default_factory=dict)
    rules: ColumnRules = field(default_factory=ColumnRules)
    """How the values of the columns are read."""
    model: str = "mlp"
    """The model, unless the task learns from a text alone."""


def recipe_text(proposal: Proposal) -> str:
    """Returns the recipe as YAML, with a comment for each column that is left out."""
    frame, target = proposal.frame, proposal.target
    is_text = proposal.target.task.endswith("text-classification")
    rows = len(frame)
    columns = [str(column) for column in frame.columns]
    of = f"{rows:,} rows of" if proposal.is_whole else f"a sample of {rows:,} rows of"
    source = _one_line(Path(redacted(proposal.source)).name)
    lines = [
        *head_of(proposal.name, proposal.target.task, f"{of} {source}"),
        "data:",
        f"  source: {yaml_text(proposal.source)}",
    ]
    lines += [f"  format: {proposal.format}"] if proposal.format else []
    lines += [f"  read: {yaml_text(read_fields(proposal.read))}   # how it is read"] if proposal.read else []
    lines += [f"  target: {yaml_text(target.in_yaml)}"]
    lines += [f"  label_separator: {yaml_text(target.separator)}"] if target.separator else []
    lines += [f"  # excluded: {_one_line(column)} {_one_line(why)}" for column, why in proposal.excluded.items()]
    lines += [] if proposal.header else ["  header: false   # data.read.names names all columns of the file, in its order"]
    lines += _wrapped("  columns:", columns)
    lines += _value_lines(proposal)
    if proposal.categorical:
        lines += _wrapped("  categorical:", proposal.categorical)
    if proposal.text is not None:
        length = _tokens(frame[proposal.text])
        lines.append(f"  text: {{column: {yaml_text(proposal.text)}, tokens: pieces, vocabulary: 8000, length: {length}}}")
    only_text = proposal.text if is_text else None
    missing = [*proposal.gaps, *([only_text] if _has_gaps(frame, only_text) else [])]
    if missing:
        why = f"   # {max(proposal.gaps.values()):,} rows have no target" if proposal.gaps else ""
        lines.append(f"  drop_missing: {yaml_text(missing)}{why}")
    if proposal.drop_values:
        lines.append(f"  drop_values: {yaml_text(proposal.drop_values)}   # too few rows to learn from")
    time = f", time: {{column: {yaml_text(proposal.time)}, test: 0.2}}" if proposal.time else ""
    lines += [
        f"  split: {{test: 0.2, validation: 0.1, seed: 7{time}}}",
        "expect:   # every batch has to meet these; names as in Great Expectations",
    ]
    lines += [f"  - {yaml_text(one)}" for one in _relaxed(_suite(frame, target), proposal)]
    training = _text_training(rows) if is_text else _training(rows, proposal.model)
    lines += [*training, *gate_section(frame, target), _serve(proposal), ""]
    return "\n".join(lines)


def _value_lines(proposal: Proposal) -> list[str]:
    """Returns the lines that say how values are read."""
    rules, lines = proposal.rules, list[str]()
    if rules.missing is not None:
        lines.append(f"  missing: {yaml_text(list(rules.missing))}   # these texts mean a missing value")
    if rules.trim:
        lines.append("  trim: true   # blanks around texts are removed")
    parse = {name: _rule_fields(rule) for name, rule in rules.rules.items() if rule.type != "time"}
    if parse:
        lines += ["  parse:", *(f"    {yaml_text(name)}: {yaml_text(rule)}" for name, rule in parse.items())]
    times = {name: {"format": rule.format} if rule.format else {} for name, rule in rules.rules.items() if rule.type == "time"}
    if times:
        lines += ["  times:", *(f"    {yaml_text(name)}: {yaml_text(fields)}" for name, fields in times.items())]
    return lines


def _rule_fields(rule: ValueRule) -> str | dict[str, Any]:
    """Returns a rule of `data.parse` as short as it can be written."""
    fields = rule.model_dump(exclude_defaults=True)
    return rule.type if not fields.keys() - {"type"} else fields


def read_fields(read: ReadConfig) -> dict[str, Any]:
    """Returns the fields of `data.read` that differ from their defaults."""
    return read.model_dump(exclude_defaults=True)


def _serve(proposal: Proposal) -> str:
    return "serve: {replicas: 2}" if proposal.text is not None else "serve: {replicas: 2, runtime: onnx}"


def _has_gaps(frame: pd.DataFrame, text: str | None) -> bool:
    return text is not None and bool(frame[text].isna().any())


def _suite(frame: pd.DataFrame, target: Target) -> list[dict[str, Any]]:
    """Returns the expectations; what labels may be is always checked, and which of them come together differs in each batch."""
    from headrace.data.validation.suite import propose_suite

    suite = propose_suite(frame, target.columns)
    return [one for one in suite if not (target.is_multilabel and one.get("column") in target.columns)]


def _relaxed(suite: list[dict[str, Any]], proposal: Proposal) -> list[dict[str, Any]]:
    """Returns expectations that rows outside of the sample meet too, with few exceptions."""
    labels = {"expect_column_values_to_be_in_set"}
    found = []
    for one in suite:
        is_label = one["type"] in labels and one["column"] in proposal.target.columns
        if proposal.text is not None and one.get("column") == proposal.text and one["type"].endswith("not_be_null"):
            continue
        if not proposal.is_whole and "column" in one and not is_label:
            one = {**one, "mostly": MOSTLY}
        found.append(one)
    return found


def _tokens(texts: pd.Series[Any]) -> int:
    """Returns a length that nearly all texts fit into; a token has about four characters."""
    longest = float(texts.dropna().astype(str).str.len().quantile(0.95)) / 3
    return next((length for length in TEXT_TOKENS if longest <= length), TEXT_TOKENS[-1])


def _text_training(rows: int) -> list[str]:
    batch = 16 if rows < 2_000 else 32 if rows < 10_000 else 64
    epochs = 20 if rows < 2_000 else 8 if rows < 20_000 else 3
    return [
        "model: {name: attention, width: 64, layers: 1, dropout: 0.2}",
        f"train: {{epochs: {epochs}, batch_size: {batch}, learning_rate: 0.002, early_stopping: {{patience: 4}}}}",
    ]


def _training(rows: int, model: str) -> list[str]:
    """Returns the sections `model` and `train`: a larger network and fewer epochs for more rows, about 100 steps per epoch; or
    trees, smaller ones for few rows."""
    if model == "lightgbm":
        return [
            f"model: {{name: lightgbm{', num_leaves: 15, min_child_samples: 10' if rows < 2_000 else ''}}}",
            "train: {seed: 7}",
        ]
    if model != "mlp":
        return [f"model: {{name: {model}{', max_depth: 4' if rows < 2_000 else ''}}}", "train: {seed: 7}"]
    batch = next(size for size in (16, 32, 64, 128, 256, 512) if rows < 100 * size or size == 512)
    hidden = "[32]" if rows < 1_000 else "[64, 32]" if rows < 10_000 else "[128, 64]"
    epochs = 60 if rows < 2_000 else 30 if rows < 20_000 else 10
    return [
        f"model: {{name: mlp, hidden: {hidden}}}",
        f"train: {{epochs: {epochs}, batch_size: {batch}, learning_rate: 0.002, early_stopping: {{patience: 5}}}}",
    ]


def gate_section(frame: pd.DataFrame, target: Target) -> list[str]:
    """Returns the section `gate`: a candidate has to beat a constant, as the most frequent label or the median."""
    return gate_lines(*_least(frame, target))


def _least(frame: pd.DataFrame, target: Target) -> tuple[str, str, str]:
    """Returns a metric, its bound, and what a constant reaches."""
    if target.is_multilabel:
        loss = multilabel_entropy(frame, target)
        return "log_loss", f"< {loss:.6f}", f"the share of each label alone reaches {loss:.4g}"
    if len(target.columns) > 1:
        error = scaled_error(frame, target.columns)
        return "scaled_mae", f"< {error:.6f}", f"the medians alone reach {error:.4g}"
    values = frame[target.columns[0]]
    if target.task != "regression":
        return majority_bound(float(values.value_counts(normalize=True).iloc[0]))
    error = float((values - values.median()).abs().mean())
    if error < 1e-4:  # bounds in such small units need an exponent; r2 has no unit
        return "r2", "> 0", "the mean alone reaches 0"
    return "mae", f"< {error:.6f}", f"the median alone reaches {error:.4g}"


def _wrapped(head: str, names: list[str]) -> list[str]:
    """Returns the lines of a YAML list, wrapped."""
    lines, line = [], f"{head} ["
    for i, name in enumerate(names):
        item = yaml_text(name) + (", " if i < len(names) - 1 else "]")
        if len(line) + len(item) > 120:
            lines.append(line.rstrip())
            line = "    "
        line += item
    return [*lines, line.rstrip()]


def _one_line(text: str) -> str:
    """Replaces characters that would end a comment."""
    return "".join(c if c.isprintable() else "?" for c in text)

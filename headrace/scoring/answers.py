"""Answers as columns of a table: their names, types and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from headrace.runtime.contract import Contract
from headrace.scoring.rows import Line
from headrace.scoring.unseen import warnings_text

MAX_CLASSES = 20
"""Up to this many classes each one has a column with its probability."""
Kind = Literal["text", "whole", "number"]


@dataclass(frozen=True)
class Column:
    """A column of the answers; `value` takes the line of a row."""

    name: str
    kind: Kind
    value: Callable[[Line], Any]


def answer_columns(contract: Contract, taken: Collection[str] = (), lead: Collection[str] = ()) -> list[Column]:
    """Returns the columns of the answers: the prediction, its probabilities or bounds, the error, what
    feedback takes, and the warnings.

    Args:
        taken: names of the file's columns. If one of the answers' names is among them, all of these end in `_2`, or the
            next number that is free.
        lead: `row`, to number the rows where the file's own columns are left out; then there are no warnings either.
    """
    columns = [
        *([Column("row", "whole", lambda line: line["row"])] if "row" in lead else []),
        *_prediction_columns(contract),
        Column("prediction_error", "text", error_text),
        Column("prediction_id", "text", lambda line: line.get("id")),
        Column("prediction_row", "whole", lambda line: line.get("id_row")),
        *([Column("prediction_warnings", "text", warnings_text)] if "row" not in lead else []),
    ]
    ending = free_ending([column.name for column in columns], taken)
    return [Column(column.name + ending, column.kind, column.value) for column in columns]


def free_ending(names: Collection[str], taken: Collection[str]) -> str:
    """Returns the ending with which none of `names` is in `taken`: nothing, `_2`, `_3`, …"""
    ending, number = "", 1
    while any(name + ending in taken for name in names):
        number += 1
        ending = f"_{number}"
    return ending


def clash_note(first: str) -> str:
    """Returns a note on names that were changed, if they were; `first` is the name of the first column of the answers."""
    if first == "prediction":
        return ""
    return f"the file has a column with the name of an answer's column, so the answers are in {first} and so on"


def error_text(line: Line) -> str | None:
    """Returns the code and the message of a refused row."""
    if not (error := line.get("error")):
        return None
    return f"{error['code']}: {str(error['message']).removeprefix('row.')}"


def _prediction_columns(contract: Contract) -> list[Column]:
    if contract.output == "probabilities":
        return _label_columns(contract)
    if contract.output == "value":
        if contract.quantiles is not None:
            levels = [f"{level:g}" for level in contract.quantiles]
            found = [Column(f"prediction_{level}", "number", _quantile(level)) for level in levels]
            return [Column("prediction", "number", _of(contract.target)), *found]
        bounds = [Column(f"prediction_{name}", "number", _bound(i)) for i, name in enumerate(("lower", "upper"))]
        return [Column("prediction", "number", _of(contract.target)), *(bounds if contract.interval is not None else [])]
    if contract.output == "labels":
        each = [Column(f"probability_{label}", "number", _probability(str(label))) for label in contract.labels or []]
        return [Column("prediction", "text", _labels), *(each if len(each) <= MAX_CLASSES else [])]
    if contract.output == "values":
        return [
            Column("prediction", "text", _text),
            *(Column(f"prediction_{_value_name(n)}", "number", _of(n)) for n in contract.targets or []),
        ]
    return [Column("prediction", "text", _text)]


def _value_name(target: str) -> str:
    """The name of one of several targets, unless the answers have another column of that name."""
    return f"value_{target}" if target in ("error", "id", "row", "warnings") else target


def _label_columns(contract: Contract) -> list[Column]:
    labels = contract.labels or []
    kind: Kind = "whole" if labels and all(isinstance(label, int) for label in labels) else "text"
    each = [Column(f"probability_{label}", "number", _probability(str(label))) for label in labels]
    return [
        Column("prediction", kind, _of("label")),
        Column("probability", "number", _highest),
        *(each if len(labels) <= MAX_CLASSES else []),
    ]


def _of(name: str) -> Callable[[Line], Any]:
    return lambda line: (line.get("prediction") or {}).get(name)


def _probability(label: str) -> Callable[[Line], Any]:
    return lambda line: ((line.get("prediction") or {}).get("probabilities") or {}).get(label)


def _quantile(level: str) -> Callable[[Line], Any]:
    return lambda line: ((line.get("prediction") or {}).get("quantiles") or {}).get(level)


def _highest(line: Line) -> Any:
    answer = line.get("prediction") or {}
    return (answer.get("probabilities") or {}).get(str(answer.get("label")))


def _labels(line: Line) -> str | None:
    """The labels of a row as a JSON list."""
    if (answer := line.get("prediction")) is None:
        return None
    return json.dumps(answer["labels"], ensure_ascii=False)


def _bound(place: int) -> Callable[[Line], Any]:
    def bound(line: Line) -> Any:
        interval = (line.get("prediction") or {}).get("interval")
        return interval[place] if interval else None

    return bound


def _text(line: Line) -> str | None:
    if (answer := line.get("prediction")) is None:
        return None
    text = answer.get("text")
    return text if isinstance(text, str) else json.dumps(answer, ensure_ascii=False)

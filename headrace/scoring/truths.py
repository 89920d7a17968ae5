"""Reads a file of true answers: CSV, JSON lines or Parquet, with a column that says which answered row each one is for."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.errors import near_miss
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.violations import describe
from headrace.scoring.open_rows import open_rows
from headrace.scoring.rows import BadRow
from headrace.scoring.values import GAPS, number

REQUEST, ROW = "request_id", "row"
MOST_PLACES = 10
"""Places that are listed; further ones are counted."""


@dataclass
class Places:
    """What happened to some rows of a file: how many, and the first of them with the reason."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str = "", rows: int = 1) -> None:
        self.count += rows
        if len(self.first) < MOST_PLACES:
            self.first.append(f"{place}: {reason}" if reason else place)


@dataclass(frozen=True)
class GivenTruth:
    """One true answer of a file."""

    place: str
    """Where it is, for example "line 5"."""
    about: Any
    """The id of an answer or of a request, or the value of the key column."""
    row: int
    truth: Any


@dataclass
class Truths:
    """The true answers of a file, each once."""

    by_row: dict[tuple[Any, int], GivenTruth] = field(default_factory=dict)
    """By request id (or key) and row number."""
    rows: int = 0
    """Rows of the file."""
    missing: int = 0
    """Rows without a true answer."""
    repeated: int = 0
    """Rows that say what an earlier one says."""
    contradictory: Places = field(default_factory=Places)
    """Rows that contradict another one; neither is in `by_row`."""
    refused: Places = field(default_factory=Places)
    """Rows that cannot be read, or hold no answer of this model."""
    _contradicted: set[tuple[Any, int]] = field(default_factory=set)

    def add(self, key: tuple[Any, int], given: GivenTruth) -> None:
        """Adds a true answer, unless it is known or contradicts another one."""
        known = self.by_row.get(key)
        if key in self._contradicted:
            self.contradictory.add(given.place, f"{_shown(key)} has several truths")
        elif known is None:
            self.by_row[key] = given
        elif known.truth == given.truth:
            self.repeated += 1
        else:
            del self.by_row[key]
            self._contradicted.add(key)
            reason = f"{_shown(key)}: {_short(known.truth)} at {known.place}, {_short(given.truth)} here"
            self.contradictory.add(given.place, reason, rows=2)


def read_truths(path: Path, contract: Contract, columns: Sequence[str], key: str | None = None) -> Truths:
    """Reads all true answers of a file.

    Args:
        contract: of the model that answered.
        columns: the columns of the true answer: one, or for several values one for each of the contract's targets.
        key: the column that identifies a row; by default `request_id` or `id`, with the row number in `row` (0 without it).

    Raises:
        BadFile: the file cannot be read, or has no such columns.
    """
    found = Truths()
    for chunk in open_rows(path, _columns_contract(contract, columns, key), "ignore").chunks():
        for place, values in enumerate(chunk.values):
            found.rows += 1
            where = chunk.places[place] if chunk.places else f"row {found.rows - 1}"
            try:
                _add(found, values, where, contract, columns, key)
            except ValueError as error:
                found.refused.add(where, str(error))
    return found


def first_id(path: Path, contract: Contract) -> str | None:
    """Returns the first id of a file, which names the model if it is a full one; None if the file has no rows.

    Raises:
        BadFile: as for `read_truths`.
    """
    rows = _rows(path, _columns_contract(contract, [], None))
    return next((str(row[REQUEST]) for row in rows if row.get(REQUEST)), None)


def request_of(about: str) -> tuple[str | None, str]:
    """Returns the model and the request id of `<model>@<version>:<request id>`; None and the text if it is only the latter."""
    reference, colon, request = about.partition(":")
    model, at, version = reference.partition("@")
    return (model, request) if colon and at and model and version and request else (None, about)


def _rows(path: Path, contract: Contract) -> Iterator[dict[str, Any]]:
    for chunk in open_rows(path, contract, "ignore").chunks():
        yield from (row for row in chunk.values if isinstance(row, dict) and not isinstance(row, BadRow))


def _columns_contract(contract: Contract, columns: Sequence[str], key: str | None) -> Contract:
    """A contract with the columns of the file as its fields, so that the readers of files to predict read it."""
    named = InputField(name=REQUEST, column="id", dtype="string") if key is None else InputField(name=key, dtype="string")
    row = [InputField(name=ROW, dtype="int64", nullable=True)] if key is None else []
    dtype: Any = "float64" if contract.output in ("value", "values") else "string"
    truths = [InputField(name=name, dtype=dtype) for name in columns]
    return contract.model_copy(update={"inputs": [named, *row, *truths]})


def _add(found: Truths, values: Any, place: str, contract: Contract, columns: Sequence[str], key: str | None) -> None:
    """
    Raises:
        ValueError: the row cannot be read, or holds no answer of this model.
    """
    if isinstance(values, BadRow):
        raise ValueError(str(values.get("message")))
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, got {describe(values)}")
    given = [values.get(name) for name in columns]
    if all(_is_missing(value, contract) for value in given):
        found.missing += 1
        return
    about = values.get(REQUEST if key is None else key)
    if _is_missing(about, contract):
        raise ValueError(f"no value in {REQUEST if key is None else key!r}")
    truth = _truth(given, contract, columns)
    if key is not None:
        found.add((about, 0), GivenTruth(place, about, 0, truth))
        return
    row = values.get(ROW)
    row = 0 if _is_missing(row, contract) else row
    if isinstance(row, float) and row.is_integer():
        row = int(row)
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise ValueError(f"row: expected a whole number from 0, got {describe(row)}")
    model, request = request_of(str(about))
    if model not in (None, contract.model):
        raise ValueError(f"the id is of another model, {str(model)[:100]!r}")
    found.add((request, row), GivenTruth(place, str(about), row, truth))


def _truth(given: Sequence[Any], contract: Contract, columns: Sequence[str]) -> Any:
    """Returns the true answer as feedback takes it.

    Raises:
        ValueError: the model cannot give such an answer.
    """
    if contract.output == "values":
        return {name: _finite(value, name) for name, value in zip(columns, given, strict=True)}
    (value,) = given
    if contract.output == "value":
        return _finite(value, columns[0])
    if contract.output == "labels":
        return [_label(label, contract) for label in _as_list(value)]
    return _label(value, contract) if contract.labels is not None else str(value)


def _label(value: Any, contract: Contract) -> str | int:
    """Returns the label of the contract, which a file may have as a text or as a number."""
    labels = {str(label): label for label in contract.labels or ()}
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    text = text.strip()
    if text not in labels and text.lower() in ("true", "false"):
        text = text.lower()
    if text not in labels:
        raise ValueError(f"unknown label {text[:100]!r}; {near_miss(text, labels)}")
    return labels[text]


def _as_list(value: Any) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f'expected a list of labels, for example ["a", "b"], got {describe(value)}')
    return found


def _finite(value: Any, name: str) -> float | int:
    found = number(value, ".") if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"{name}: expected a finite number, got {describe(value)}")
    return found


def _is_missing(value: Any, contract: Contract) -> bool:
    if isinstance(value, str):
        return value in GAPS and value not in (contract.labels or ())
    return value is None or (isinstance(value, float) and math.isnan(value))


def _shown(key: tuple[Any, int]) -> str:
    about, row = key
    return f"{str(about)[:100]} row {row}" if row else str(about)[:100]


def _short(truth: Any) -> str:
    text = truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."

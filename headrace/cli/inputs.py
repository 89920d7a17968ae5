"""Converts the input of `headrace predict` (fields, a text or a file) to instances of a model's contract."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.errors import DataError, UsageError, near_miss
from headrace.files import visible_names
from headrace.runtime.contract import Contract, InputField

IMAGES = (".png", ".jpg", ".jpeg")
TABLES = (".csv", ".csv.gz", ".tsv", ".tab", ".parquet", ".pq", ".sdf")
FILES = (".json", ".jsonl", ".txt", *IMAGES, *TABLES)


def from_fields(pairs: Sequence[str], contract: Contract) -> list[Any]:
    """Returns one instance from `name=value` pairs; an empty value is a missing one.

    Raises:
        UsageError: not a pair, an unknown field, or not a number where one is expected.
    """
    fields = {field.name: field for field in contract.inputs}
    instance: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"expected NAME=VALUE, got {pair!r}", hint=f"fields: {', '.join(fields)}")
        if name not in fields:
            raise UsageError(
                f"unknown field {name!r} of {contract.model}; {near_miss(name, fields)}",
                hint=f"fields: {', '.join(fields)}",
            )
        instance[name] = _value(value, fields[name])
    return [instance]


def from_text(text: str, contract: Contract) -> list[Any]:
    """Returns one instance for a model with one text field.

    Raises:
        UsageError: the model has other fields.
    """
    return [{_only(contract, "string", "text").name: text}]


def from_file(path: Path, contract: Contract) -> list[Any]:
    """Returns the instances of a file, by its ending: JSON (one or a list), JSON lines, a table, molecules, an image, a text.

    Raises:
        UsageError: the file is missing, has an unknown format, or does not suit the model.
        DataError: the file is damaged.
    """
    if not path.is_file():
        siblings = [name for name in visible_names(path.parent) if name.lower().endswith(FILES)]
        raise UsageError(
            f"file {path} not found; {near_miss(path.name, siblings)}", where="--file", hint="name an existing file"
        )
    ending = next((e for e in sorted(FILES, key=len, reverse=True) if path.name.lower().endswith(e)), "")
    if ending in IMAGES:
        return [{_only(contract, "uint8", "image").name: base64.b64encode(path.read_bytes()).decode()}]
    if ending in TABLES:
        return _rows(path, contract)
    if ending not in FILES:
        raise UsageError(f"unknown format of {path.name}", where="--file", hint=f"use a name that ends in {', '.join(FILES)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text at byte {error.start}", where=str(path), hint="save the file as UTF-8") from None
    if ending == ".txt":
        return from_text(text, contract)
    return from_json(text if ending == ".json" else f"[{','.join(line for line in text.splitlines() if line.strip())}]")


def from_json(text: str) -> list[Any]:
    """Returns a list of instances from JSON with one or several.

    Raises:
        UsageError: invalid JSON.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"invalid JSON: {error}", hint='write one input, for example {"field": 1}, or a list of inputs'
        ) from None
    return found if isinstance(found, list) else [found]


def _value(text: str, field: InputField) -> Any:
    if field.dtype == "string":
        return text
    if text == "":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise UsageError(f"{field.name}: expected a number, got {text!r}", hint=f"for example {field.name}=1.5") from None


def _only(contract: Contract, dtype: str, what: str) -> InputField:
    """Returns the only field of `dtype`, for an image or a text."""
    found = [field for field in contract.inputs if field.dtype == dtype]
    if len(found) > 1:  # a prompt, for example, besides an optional text that ends the answer
        found = [field for field in found if not field.nullable]
    if len(found) != 1:
        raise UsageError(
            f"{contract.model} does not take one {what}", hint=f"headrace predict {contract.model} {_how(contract)}"
        )
    return found[0]


def _how(contract: Contract) -> str:
    """Returns the arguments of `headrace predict` for this model."""
    required = [field for field in contract.inputs if not field.nullable] or contract.inputs
    if [field.dtype for field in required] == ["uint8"]:
        return "--file IMAGE.png"
    if [field.dtype for field in required] == ["string"] and required[0].levels is None:
        return "--text TEXT"
    return " ".join(f"{field.name}=…" for field in required)


def _rows(path: Path, contract: Contract) -> list[Any]:
    from headrace.data.formats.files import read_file
    from headrace.data.formats.options import ReadOptions

    texts = [field.name for field in contract.inputs if field.dtype == "string"]
    table = read_file(path, ReadOptions(text=texts))
    names = [field.name for field in contract.inputs]
    needed = [field.name for field in contract.inputs if not field.nullable and field.default is None]
    lacking = [name for name in needed if name not in table.column_names]
    if lacking:
        raise DataError(
            f"column {lacking[0]!r} is missing; {near_miss(lacking[0], table.column_names)}",
            where=str(path),
            hint=f"add the columns {', '.join(names)}",
        )
    lists = [field.name for field in contract.inputs if field.shape and field.dtype != "uint8"]
    rows: list[Any] = table.select([name for name in names if name in table.column_names]).to_pylist()
    return [{name: _list(value, name, path) if name in lists else value for name, value in row.items()} for row in rows]


def _list(value: Any, column: str, path: Path) -> Any:
    """Parses the value of a column whose field takes lists, which a table holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(
            f"invalid JSON: {error}", where=f"{path}, column {column}", hint="write a list, for example [[0, 1]]"
        ) from None

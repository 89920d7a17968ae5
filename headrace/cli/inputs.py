"""What a person gives `headrace predict`, as instances of a model's contract: fields, a text, a file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headrace.errors import DataError, UsageError, near_miss
from headrace.runtime.contract import Contract, InputField

PICTURES = (".png", ".jpg", ".jpeg")
TABLES = (".csv", ".csv.gz", ".tsv", ".tab", ".parquet", ".pq", ".sdf")
FILES = (".json", ".jsonl", ".txt", *PICTURES, *TABLES)


def from_fields(pairs: Sequence[str], contract: Contract) -> list[Any]:
    """One instance from `name=value` pairs; nothing after `=` is a missing value.

    Raises:
        UsageError: no pair, no such field, or no number where the field takes one.
    """
    fields = {field.name: field for field in contract.inputs}
    instance: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{pair!r} is no field with a value", hint=f"write it as NAME=VALUE: {', '.join(fields)}")
        if name not in fields:
            raise UsageError(
                f"{contract.model} takes no field {name!r}; {near_miss(name, fields)}",
                hint=f"its fields: {', '.join(fields)}",
            )
        instance[name] = _value(value, fields[name])
    return [instance]


def from_text(text: str, contract: Contract) -> list[Any]:
    """One instance of a model that takes one text.

    Raises:
        UsageError: the model takes something else.
    """
    return [{_only(contract, "string", "text").name: text}]


def from_file(path: Path, contract: Contract) -> list[Any]:
    """Instances from a file, by its ending: JSON (one or a list), JSON lines, a table, molecules, a picture, a text.

    Raises:
        UsageError: the file is missing, of another format, or nothing this model takes.
        DataError: the file is damaged.
    """
    if not path.is_file():
        beside = path.parent.iterdir() if path.parent.is_dir() else []
        siblings = [found.name for found in beside if found.name.lower().endswith(FILES)]
        raise UsageError(f"no file {path}; {near_miss(path.name, siblings)}", where="--file", hint="name a file that is there")
    ending = next((e for e in sorted(FILES, key=len, reverse=True) if path.name.lower().endswith(e)), "")
    if ending in PICTURES:
        return [{_only(contract, "uint8", "image").name: base64.b64encode(path.read_bytes()).decode()}]
    if ending in TABLES:
        return _rows(path, contract)
    if ending not in FILES:
        raise UsageError(
            f"cannot tell what {path.name} holds", where="--file", hint=f"use a name that ends in {', '.join(FILES)}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text at byte {error.start}", where=str(path), hint="save the file as UTF-8") from None
    if ending == ".txt":
        return from_text(text, contract)
    return from_json(text if ending == ".json" else f"[{','.join(line for line in text.splitlines() if line.strip())}]")


def from_json(text: str) -> list[Any]:
    """One instance, or a list of them.

    Raises:
        UsageError: it is no JSON.
    """
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"no valid JSON: {error}", hint='write one input such as {"field": 1}, or a list of them') from None
    return found if isinstance(found, list) else [found]


def _value(text: str, field: InputField) -> Any:
    if field.dtype == "string":
        return text
    if text == "":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise UsageError(f"{field.name}: {text!r} is no number", hint=f"write such as {field.name}=1.5") from None


def _only(contract: Contract, dtype: str, what: str) -> InputField:
    """The one field of `dtype` that a model takes which is asked for a picture or a text."""
    found = [field for field in contract.inputs if field.dtype == dtype]
    if len(found) > 1:  # such as a prompt, and beside it a text that ends the answer
        found = [field for field in found if not field.nullable]
    if len(found) != 1:
        raise UsageError(f"{contract.model} takes no {what}", hint=f"headrace predict {contract.model} {_how(contract)}")
    return found[0]


def _how(contract: Contract) -> str:
    """What the command takes for this model."""
    asked = [field for field in contract.inputs if not field.nullable] or contract.inputs
    if [field.dtype for field in asked] == ["uint8"]:
        return "--file PICTURE.png"
    if [field.dtype for field in asked] == ["string"] and asked[0].levels is None:
        return "--text TEXT"
    return " ".join(f"{field.name}=…" for field in asked)


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
            f"no column {lacking[0]!r}; {near_miss(lacking[0], table.column_names)}",
            where=str(path),
            hint=f"bring the columns {', '.join(names)}",
        )
    lists = [field.name for field in contract.inputs if field.shape and field.dtype != "uint8"]
    rows: list[Any] = table.select([name for name in names if name in table.column_names]).to_pylist()
    return [{name: _list(value, name, path) if name in lists else value for name, value in row.items()} for row in rows]


def _list(value: Any, column: str, path: Path) -> Any:
    """The value of a column whose field takes lists: in a table it stands as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise DataError(f"no JSON: {error}", where=f"{path}, column {column}", hint="write a list, such as [[0, 1]]") from None

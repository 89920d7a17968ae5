"""Converts the input of `headrace predict` (fields, a text or a file) to instances of a model's contract."""

from __future__ import annotations

import base64
import codecs
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from headrace.errors import DataError, UsageError, near_miss
from headrace.files import visible_names
from headrace.runtime.contract import Contract
from headrace.runtime.images import format_of, is_image_file
from headrace.runtime.input_field import InputField
from headrace.spreadsheets import ENDINGS as WORKBOOKS
from headrace.spreadsheets import OLE

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
MOLECULES = (".sdf", ".sdf.gz")
TABLES = (".csv", ".csv.gz", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet", ".pq", ".zip", *WORKBOOKS)
FILES = (".json", ".txt", *IMAGES, *MOLECULES, *TABLES)
MAX_LINE_BYTES = 16 * 1024 * 1024


def from_fields(pairs: Sequence[str], contract: Contract) -> list[Any]:
    """Returns one instance from `name=value` pairs; an empty value is a missing one.

    Raises:
        UsageError: not a pair, an unknown field, or not a number where one is expected.
    """
    fields = {field.name: field for field in contract.inputs}
    fields |= {column: fields[name] for column, name in contract.fields_of_columns.items() if column not in fields}
    instance: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = _partition(pair, fields)
        if not equals:
            raise UsageError(f"expected NAME=VALUE, got {pair!r}", hint=f"fields: {', '.join(fields)}")
        if name not in fields:
            raise UsageError(
                f"unknown field {name!r} of {contract.model}; {near_miss(name, fields)}",
                hint=f"fields: {', '.join(fields)}",
            )
        instance[fields[name].name] = _value(value, fields[name])
    return [instance]


def _partition(pair: str, names: Collection[str]) -> tuple[str, str, str]:
    """Splits `name=value`; the name may have an equals sign, if it is a field's."""
    name = max((name for name in names if pair.startswith(f"{name}=")), key=len, default=None)
    return pair.partition("=") if name is None else (name, "=", pair[len(name) + 1 :])


def from_text(text: str, contract: Contract) -> list[Any]:
    """Returns one instance for a model with one text field.

    Raises:
        UsageError: the model has other fields.
    """
    return [{_only(contract, "string", "text").name: text}]


def has_rows(path: Path, contract: Contract) -> bool:
    """Returns whether a file is a table or several pictures by its content, rather than one input or a list of them in JSON.

    Raises:
        UsageError: the file is missing.
    """
    if path.is_dir():
        return True
    if str(path) == "-":
        return False
    _require(path)
    with path.open("rb") as handle:
        magic = handle.peek(16)[:16]
        first, second = handle.readline(MAX_LINE_BYTES), handle.readline(MAX_LINE_BYTES)
    if is_image_file(magic) or format_of(magic) is not None:
        return False
    if magic.startswith((b"PAR1", b"PK\x03\x04", OLE)):
        return True
    start = first.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return False
    if path.suffix.lower() == ".json" and start.startswith(b"{"):
        return bool(second.strip()) and _is_json(first)  # JSON lines under another name
    if path.name.lower().endswith((".json", *MOLECULES, *IMAGES)):
        return False
    return path.suffix.lower() != ".txt" or not _is_text_model(contract)


def from_file(path: Path, contract: Contract) -> list[Any]:
    """Returns the instances of a file that is not a table: JSON (one or a list), molecules, an image, a text.

    Raises:
        UsageError: the file is missing, has an unknown format, or does not suit the model.
        DataError: the file is damaged.
    """
    _require(path)
    name = path.name.lower()
    with path.open("rb") as handle:
        start = handle.read(16)
    if name.endswith(IMAGES) or is_image_file(start):
        return [{_only(contract, "uint8", "image").name: base64.b64encode(path.read_bytes()).decode()}]
    if (other := format_of(start)) is not None:
        raise UsageError(f"{path.name} is {other}", where="--file", hint="save the picture as PNG or JPEG")
    if name.endswith(MOLECULES):
        return _molecules(path, contract)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text at byte {error.start}", where=str(path), hint="save the file as UTF-8") from None
    return from_text(text, contract) if name.endswith(".txt") else from_json(text)


def _require(path: Path) -> None:
    if not path.is_file():
        siblings = [name for name in visible_names(path.parent) if name.lower().endswith(FILES)]
        raise UsageError(
            f"file {path} not found; {near_miss(path.name, siblings)}", where="--file", hint="name an existing file"
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_text_model(contract: Contract) -> bool:
    """Whether the model takes one free text."""
    needed = [field for field in contract.inputs if not field.nullable and field.default is None]
    return len(needed) == 1 and needed[0].dtype == "string" and needed[0].levels is None


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
    try:
        return field.from_text(text)
    except ValueError:
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


def _molecules(path: Path, contract: Contract) -> list[Any]:
    from headrace.data.formats.files import read_file

    table = read_file(path)
    names = [field.name for field in contract.inputs if field.name in table.column_names]
    if not names:
        fields = ", ".join(field.name for field in contract.inputs)
        raise UsageError(f"{contract.model} takes no molecules", where="--file", hint=f"its fields are {fields}")
    rows: list[Any] = table.select(names).to_pylist()
    return [{name: json.loads(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]

"""Conversion of values of files to values of a contract's fields. What does not fit is left for the contract to refuse."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from typing import Any

from headrace.client.errors import InvalidInput
from headrace.client.requests import to_json_value
from headrace.runtime.input_field import InputField
from headrace.scoring.rows import BadRow, bad_row

GAPS = {"", "NA", "N/A", "n/a", "NULL", "null", "NaN", "nan", "-NaN", "-nan", "#N/A", "#NA", "#N/A N/A"}
GAPS |= {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
"""Cells that are missing values, as in the tables that models are trained on (the default of Arrow)."""
TRUTHS = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
THOUSANDS = {
    ".": re.compile(r"[+-]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]*)?"),
    ",": re.compile(r"[+-]?[1-9][0-9]{0,2}(?:[. '\u00a0\u202f][0-9]{3})+(?:,[0-9]*)?"),
}
"""Numbers with marks between the thousands, by the decimal sign."""
LONGEST_NUMBER = 400
PLAIN = (str, int, bool, type(None))
"""Types of values that are sent as they are."""


def from_text(text: str, field: InputField, decimal: str) -> Any:
    """Returns the value of a cell of a CSV file.

    Args:
        decimal: the decimal sign of the file, a point or a comma.
    """
    gaps = field.missing or GAPS
    if field.dtype == "string":
        return _category(text, field, gaps)
    text = text.strip()
    if text in gaps:
        return None
    if field.rule is not None:
        return text  # the contract reads it, by the recipe's rule
    if field.shape:
        return _list(text, field)
    if field.boolean and (truth := TRUTHS.get(text.lower())) is not None:
        return truth
    return number(text, decimal)


def number(text: str, decimal: str) -> int | float | str:
    """Returns a number, or the text if it is none."""
    if len(text) > LONGEST_NUMBER:
        return text
    if decimal == "." and NUMBER.fullmatch(text):  # most numbers
        return _parsed(text, text)
    plain = re.sub(r"[. '\u00a0\u202f]" if decimal == "," else ",", "", text) if THOUSANDS[decimal].fullmatch(text) else text
    plain = plain.replace(",", ".") if decimal == "," else plain
    if not NUMBER.fullmatch(plain):
        return text
    return _parsed(plain, text)


def _parsed(plain: str, text: str) -> int | float | str:
    """Returns the number, or the text as it was if the number is too large."""
    if plain.lstrip("+-").isdigit():
        return int(plain)
    found = float(plain)
    return text if math.isinf(found) else found


def from_values(row: dict[str, Any], fields: dict[str, InputField]) -> dict[str, Any] | BadRow:
    """Returns a row of Parquet or JSON with the values that a request would have."""
    try:
        return {name: _typed(value, name, fields.get(name)) for name, value in row.items()}
    except InvalidInput as error:
        return bad_row("contract_violation", f"{error.where}: {error.message}" if error.where else error.message)


def _typed(value: Any, name: str, field: InputField | None) -> Any:
    if type(value) not in PLAIN:
        value = to_json_value(value, name)
    if field is None:
        return value
    if field.dtype == "string" and isinstance(value, bool):
        return _as_level(str(value), field)
    if field.shape and field.dtype != "uint8" and isinstance(value, str):
        return _list(value, field)
    return value


def _category(text: str, field: InputField, gaps: Collection[str]) -> Any:
    if field.levels is not None and text in field.levels:
        return text  # also a level "NA"
    if text == "" or (text in gaps and (field.nullable or field.levels is not None)):
        return None
    return _as_level(text, field) if text.lower() in ("true", "false") else text


def _as_level(text: str, field: InputField) -> str:
    """Returns the level that is the same truth: `True` in one file is `true` in another."""
    return next((level for level in field.levels or () if level.lower() == text.lower()), text)


def _list(text: str, field: InputField) -> Any:
    """Parses a list, which a table holds as JSON; base64 of an image stays as it is."""
    if field.dtype == "uint8" and not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text

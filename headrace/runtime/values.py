"""How values are read from text: one set of conversions for ingest, later batches, the service, clients and the command line.

A recipe names a rule for a column (`data.parse`, `data.times`); the contract of the model has the same rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

MAX_EXACT_INTEGER = 2.0**53
"""Larger integers lose precision in JSON and in a double."""
LARGEST_INTEGER = 2**63 - 1
COUNTERPART = {".": ",", ",": "."}
"""The usual thousands separator by decimal sign."""
SPACES = " \u00a0\u202f\u2009"
"""Blanks that separate thousands: plain, no-break, narrow no-break and thin."""
MINUS = str.maketrans({"\u2212": "-"})
WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
"""A whole number without leading zeros, which a code may have."""
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?")


class ValueRule(BaseModel):
    """How the values of one column are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["number", "boolean", "text", "time"] = "number"
    """What the values are. `text` keeps codes of digits as they are written."""
    decimal: Literal[".", ","] = "."
    """The decimal sign of numbers."""
    thousands: str | None = None
    """The separator of thousands; by default a blank, or `,` where the decimal sign is a point, and `.` where it is a comma."""
    strip: list[str] = []
    """Units and currencies before or after a number, for example `[$, EUR, kg, "%"]`."""
    true_values: list[str] = ["true", "1"]
    """Texts that mean true, in upper or lower case."""
    false_values: list[str] = ["false", "0"]
    """Texts that mean false, in upper or lower case."""
    format: str | None = None
    """The format of times as Python's `strptime` has it, for example `%d/%m/%Y`; by default ISO 8601."""

    @field_validator("strip", "true_values", "false_values", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, bool) for text in texts):
            raise ValueError('YAML reads yes, no, on and off as true and false; write them in quotes, for example ["yes"]')
        return [str(text) if isinstance(text, int | float) else text for text in texts]

    @model_validator(mode="after")
    def _check_signs(self) -> ValueRule:
        if self.thousands == self.decimal:
            raise ValueError(f"thousands: {self.thousands!r} is the decimal sign too; use another one for one of them")
        if self.format is not None:
            check_time_format(self.format)
        both = {text.casefold() for text in self.true_values} & {text.casefold() for text in self.false_values}
        if both:
            raise ValueError(f"true_values: {sorted(both)[0]!r} is in false_values too")
        return self

    @property
    def expected(self) -> str:
        """What a text has to be, for errors."""
        if self.type == "number":
            units = f", with {' or '.join(self.strip)} before or after it" if self.strip else ""
            return f"a number with the decimal sign {self.decimal!r}{units}"
        if self.type == "boolean":
            return f"one of {', '.join([*self.true_values, *self.false_values])}"
        if self.type == "time":
            return f"a time in the format {self.format}" if self.format else "a time such as 2024-01-31 or 2024-01-31T09:30:00"
        return "text"

    def read(self, value: Any) -> Any:
        """Returns the value of a text: a float, a bool, or the seconds since 1970 (UTC) of a time.

        Raises:
            ValueError: the text is not such a value.
        """
        if self.type == "number":
            return parse_number(value, self)
        if self.type == "boolean":
            return parse_boolean(value, self)
        if self.type == "time":
            return seconds_of(value, self.format)
        return category_text(value)


def check_time_format(format: str) -> None:
    """
    Raises:
        ValueError: `strptime` cannot read what `strftime` writes in this format, or it has no day.
    """
    moment = datetime(2001, 2, 28, 13, 45, 56)
    try:
        found = datetime.strptime(moment.strftime(format), format)
    except ValueError as error:
        raise ValueError(f"format: {format!r} cannot be read: {error}; write for example %d/%m/%Y") from None
    if found.year != moment.year:
        raise ValueError(f"format: {format!r} has no year; write for example %d/%m/%Y")


def is_rounded(number: int) -> bool:
    """Returns whether float64 has only a neighbour of a whole number: all up to 2^53 are exact, and some of the larger ones.

    A float that is written without an exponent, as JavaScript and Go write 1e17, is not rounded: its digits are the float's.
    """
    if -MAX_EXACT_INTEGER <= number <= MAX_EXACT_INTEGER:
        return False
    try:
        near = float(number)
    except OverflowError:
        return True
    return int(near) != number and int(Decimal(repr(near))) != number


def parse_number(value: Any, rule: ValueRule) -> float:
    """Returns the number in a text such as `$1,234.50` or `7 %`, or a number as it is.

    Raises:
        ValueError: the text is not a number in the rule's format.
    """
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int | float | Decimal):
        return float(value)
    number = float(_plain_number(value, rule))
    if math.isinf(number):
        raise ValueError(value)
    return number


def is_rounded_text(text: str, rule: ValueRule) -> bool:
    """Returns whether float64 has only a neighbour of the whole number in a text that `rule` reads as a number."""
    plain = _plain_number(text, rule)
    return plain.lstrip("+-").isdigit() and is_rounded(int(plain))


def _plain_number(value: Any, rule: ValueRule) -> str:
    """Returns the number in a text as Python writes it: without units and separators of thousands.

    Raises:
        ValueError: the text is not a number in the rule's format.
    """
    text, sign = str(value).translate(MINUS).strip(), ""
    if text[:1] == "(" and text[-1:] == ")":  # an amount below zero in accounts
        text = f"-{text[1:-1].strip()}"
    if text[:1] in ("+", "-"):
        text, sign = text[1:].strip(), text[0]
    text = _without_units(text, rule.strip)
    if not sign and text[:1] in ("+", "-"):  # as in `$-5.00`
        text, sign = text[1:].strip(), text[0]
    whole, _, fraction = text.partition(rule.decimal)
    digits = _without_thousands(whole, rule)
    if digits is None or not re.fullmatch("[0-9]*([eE][+-]?[0-9]+)?", fraction) or not (digits + fraction):
        raise ValueError(value)
    return f"{sign}{digits or 0}.{fraction}" if fraction else f"{sign}{digits}"


def _without_thousands(whole: str, rule: ValueRule) -> str | None:
    """Returns the digits before the decimal sign; None if they are not a number, or not in groups of thousands."""
    if re.fullmatch("[0-9]*([eE][+-]?[0-9]+)?", whole):
        return whole
    signs = f"{COUNTERPART[rule.decimal]}{SPACES}'" if rule.thousands is None else rule.thousands
    signs = SPACES if signs == " " else signs
    found = re.fullmatch(f"[1-9][0-9]{{0,2}}(?:([{re.escape(signs)}])[0-9]{{2,3}})+", whole) if signs else None
    # one separator throughout; groups of two digits as in India, but the last one has three
    if found is None or len(set(re.sub("[0-9]", "", whole))) != 1 or not re.search("[^0-9][0-9]{3}$", whole):
        return None
    return re.sub("[^0-9]", "", whole)


def _without_units(text: str, units: list[str]) -> str:
    before = None
    while text != before:
        before = text
        for unit in units:
            text = text.removeprefix(unit).removesuffix(unit).strip() if unit else text
    return text


def parse_boolean(value: Any, rule: ValueRule) -> bool:
    """Returns true or false for a text of the rule, a bool, or the numbers 1 and 0.

    Raises:
        ValueError: another value.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    text = str(value).strip().casefold()
    if text in _folded(tuple(rule.true_values)):
        return True
    if text in _folded(tuple(rule.false_values)):
        return False
    raise ValueError(value)


@lru_cache(maxsize=64)
def _folded(texts: tuple[str, ...]) -> frozenset[str]:
    return frozenset(text.casefold() for text in texts)


def seconds_of(value: Any, format: str | None = None) -> float:
    """Returns the seconds since 1970 of a time; one without a zone counts as UTC.

    Args:
        value: a text in `format` or in ISO 8601, a date, or a datetime.

    Raises:
        ValueError: not a time in this format.
    """
    if isinstance(value, str):
        text = value.strip()
        moment = None
        if format is not None:
            try:
                moment = datetime.strptime(text, format)
            except ValueError:
                moment = None
        if moment is None:
            if re.fullmatch("[0-9]*", text):  # `20240131` would be a time in ISO 8601, and so would a code
                raise ValueError(value)
            moment = datetime.fromisoformat(text)
    elif isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)
    else:
        raise ValueError(value)
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (moment - EPOCH).total_seconds()


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def category_text(value: Any) -> str:
    """Returns the text of a category: `1` for 1 and 1.0, `true` for True, texts as they are."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def is_missing(value: Any, missing: Collection[str]) -> bool:
    """Returns whether a value counts as missing: null, NaN, or one of the texts `missing`, `-999` also as a number."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    if not missing or isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return value in gap_numbers(tuple(missing))
    return isinstance(value, str) and value.strip() in missing


@lru_cache(maxsize=256)
def gap_numbers(missing: tuple[str, ...]) -> frozenset[float]:
    """Returns the numbers that mean a missing value, such as -999."""
    return frozenset(float(text) for text in missing if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text))

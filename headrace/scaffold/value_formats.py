"""Recognises what texts of a column stand for: numbers with units, dates in a national order, missing values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from headrace.runtime.values import ValueRule
from headrace.scaffold.dialect import number_format

MISSING = frozenset(
    "? - -- --- . .. … * n.a. n.a n/a. n.d. nd none nil unknown missing undefined unbekannt k.a. k.a ka "  # noqa: SIM905
    "na n/a nan null #n/a #n/a! #null! #div/0! #value! #ref! (null) <na> nat x".split()
)
"""Texts that mean a missing value among numbers, in lower case."""
MISSING_ANYWHERE = frozenset({"?", "#n/a!", "#null!", "(null)", "<na>", "\\n", "n.a.", "--", "nan"})
"""Those that also mean it among texts."""
CURRENCIES = frozenset(
    "$ € £ ¥ ₹ ₽ ₩ ₺ zł kr kč Kč Ft R$ CHF EUR USD GBP JPY CNY INR SEK NOK DKK PLN CZK HUF AUD CAD US$".split()  # noqa: SIM905
)
AMOUNT = re.compile(
    r"^\(?[+\-−]?\s*(?P<before>[^\d\s+\-−.,()]{0,4})\s*[+\-−]?\s*(?P<number>[\d.,](?:[\d.,'’_ \xa0\u202f]*\d)?[.,]?)"
    r"(?P<gap>\s*)(?P<after>[^\d\s()]{0,8})\s*\)?$"
)
SCALES = frozenset({"k", "K", "M", "B", "bn", "Mio", "Mrd"})
"""Units that multiply."""
MOST_MISSING = 3
"""Most different texts among the numbers of a column that are taken for missing values."""
SOME_NUMBERS = 0.95
"""With this share of numbers the other values of a column are named."""
DATES = (
    ("%d.%m.%Y", r"\d{1,2}\.\d{1,2}\.\d{4}"),
    ("%d/%m/%Y", r"\d{1,2}/\d{1,2}/\d{4}"),
    ("%m/%d/%Y", r"\d{1,2}/\d{1,2}/\d{4}"),
    ("%d-%m-%Y", r"\d{1,2}-\d{1,2}-\d{4}"),
    ("%m-%d-%Y", r"\d{1,2}-\d{1,2}-\d{4}"),
    ("%d.%m.%y", r"\d{1,2}\.\d{1,2}\.\d{2}"),
    ("%d/%m/%y", r"\d{1,2}/\d{1,2}/\d{2}"),
    ("%m/%d/%y", r"\d{1,2}/\d{1,2}/\d{2}"),
    ("%Y/%m/%d", r"\d{4}/\d{1,2}/\d{1,2}"),
    ("%Y.%m.%d", r"\d{4}\.\d{1,2}\.\d{1,2}"),
    ("%d %b %Y", r"\d{1,2} [A-Za-z]{3} \d{4}"),
    ("%d-%b-%Y", r"\d{1,2}-[A-Za-z]{3}-\d{4}"),
    ("%b %d, %Y", r"[A-Za-z]{3} \d{1,2}, \d{4}"),
    ("%B %d, %Y", r"[A-Za-z]{4,9} \d{1,2}, \d{4}"),
)
ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:?\d{2})?)?")
TIMES = (("", ""), (" %H:%M", r" \d{1,2}:\d{2}"), (" %H:%M:%S", r" \d{1,2}:\d{2}:\d{2}"))


@dataclass(frozen=True)
class Numbers:
    """A column of texts that are numbers in another format, apart from some that mean a missing value."""

    rule: ValueRule
    missing: list[str]
    example: str


@dataclass(frozen=True)
class Dates:
    """A column of texts that are dates; `other` is a second order in which all of them are dates too."""

    rule: str | None
    """The format; None: ISO 8601."""
    other: str | None
    example: str


def as_numbers(texts: Iterable[str], are_grouped: bool = False) -> Numbers | None:
    """Returns how texts are read as numbers, or None if they are none, or differ in their units."""
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    missing = [text for text in found if text.lower() in MISSING]
    values = [text for text in found if text.lower() not in MISSING]
    if not values or len(missing) > MOST_MISSING:
        return None
    parts = [AMOUNT.match(value) for value in values]
    if not all(parts):
        return None
    units = {unit for part in parts if part for unit in (part["before"], part["after"]) if unit}
    if len(units) > 1 or not all(_is_unit(part) for part in parts if part):
        return None
    unit = next(iter(units), None)
    if unit in SCALES and not all(part["before"] or part["after"] for part in parts if part):
        return None  # 1M beside 500 is not 1
    if unit is None and any(re.fullmatch(r"[+-]?\d{16,}", value) for value in values):
        return None  # a code, which a number would round
    if unit and any(part and part["before"] and part["after"] for part in parts):
        return None
    rule = number_format([part["number"] for part in parts if part], is_money=are_grouped or unit in CURRENCIES)
    if rule is None or (unit is None and any(re.match(r"[+-]?0\d", value) for value in values)):
        return None
    decimal: Literal[".", ","] = "," if rule.decimal == "," else "."
    return Numbers(ValueRule(decimal=decimal, strip=[unit] if unit else []), missing, values[0])


def _is_unit(part: re.Match[str]) -> bool:
    """Returns whether the text beside a number is a unit; `A12` and `Gate 7` are names."""
    before, after = part["before"], part["after"]
    if before and before not in CURRENCIES:
        return False
    return (
        not after
        or after in CURRENCIES
        or after in "%‰°"
        or bool(re.fullmatch(r"[^\W\d_]{1,4}[²³]?|°[CF]|[^\W\d_]{1,3}/[^\W\d_]{1,3}", after))
    )


def as_dates(texts: Iterable[str]) -> Dates | None:
    """Returns the format in which all texts are dates, or None."""
    found = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not found:
        return None
    if all(ISO.fullmatch(text) and _is_iso(text) for text in found):
        return Dates(None, None, found[0])
    fitting = [
        day + time
        for day, day_pattern in DATES
        for time, time_pattern in TIMES
        if re.fullmatch(day_pattern + time_pattern, found[0]) and all(_is_date(text, day + time) for text in found)
    ]
    return Dates(fitting[0], next(iter(fitting[1:]), None), found[0]) if fitting else None


def _is_iso(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_date(text: str, rule: str) -> bool:
    try:
        datetime.strptime(text, rule)
    except ValueError:
        return False
    return True


def not_numbers(texts: Iterable[str]) -> Counter[str] | None:
    """Returns the texts of a column that are not numbers, if nearly all of it are, else None."""
    counts = Counter(text.strip() for text in texts if text.strip())
    others = Counter({text: n for text, n in counts.items() if number_format([text]) is None})
    total = sum(counts.values())
    return others if others and total and 1 - sum(others.values()) / total >= SOME_NUMBERS else None

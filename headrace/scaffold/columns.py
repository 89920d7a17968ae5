"""Describes the columns of a table: type, gaps, distinct values, role, and why a column is left out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from headrace.data.formats.column_rules import ColumnRules
from headrace.data.formats.text_values import LEADING_ZERO, null_values
from headrace.runtime.values import ValueRule, is_rounded
from headrace.scaffold.value_formats import MISSING_ANYWHERE, as_dates, as_numbers, not_numbers

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["target", "feature", "text", "time", "left out"]
CLASSES_LIMIT = 20
"""A target of whole numbers with at most this many distinct values is treated as classes."""
LABELS_LIMIT = 1000
"""A text target with more distinct values is treated as an identifier or free text."""
LEVELS_LIMIT = 1000
"""A text column with more distinct values is not useful for new rows."""
WORDS = 3
"""Texts with at least this many words on average are sentences."""
RANGE = re.compile(r".+\[\d+\]", re.DOTALL)
"""In `data.columns`, `pixel[784]` means 784 columns."""
INDEX_NAMES = re.compile(r"unnamed: \d+(_level_\d+)?|__index_level_\d+__", re.IGNORECASE)
ID_NAMES = re.compile(r"(^|_|\b)(id|index|key|rowid|uuid|guid)$")


@dataclass(frozen=True)
class Column:
    """What is known of one column."""

    name: str
    type: str
    gaps: int
    distinct: int
    role: Role
    reason: str | None = None
    """Why it is left out, or how it is read."""
    hint: str | None = None
    """How to use it nevertheless."""
    example: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class FoundRules:
    """How values that are not plain numbers are read, and what that says of their columns."""

    rules: dict[str, ValueRule] = field(default_factory=dict)
    """By column: `data.parse`, and of times `data.times`."""
    missing: list[str] = field(default_factory=list)
    trim: bool = False
    """Whether texts have blanks around them."""
    notes: dict[str, str] = field(default_factory=dict)
    """How a column is read, in words."""
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Why a column is not what it seems to be, and what would help."""
    is_text: bool = True
    """Whether the file is a text, where words such as NA mean a missing value."""

    def applied(self, before: ColumnRules) -> ColumnRules:
        """Returns rules with these ones; what the user has set stays."""
        rules, missing = {**self.rules, **before.rules}, all_missing(before.missing, self.missing, self.is_text)
        return replace(before, rules=rules, missing=missing, trim=before.trim or self.trim)

    def add_missing(self, texts: list[str]) -> None:
        self.missing += [text for text in texts if text not in self.missing]


def all_missing(before: tuple[str, ...] | None, found: list[str], is_text: bool) -> tuple[str, ...] | None:
    """Returns the texts that mean a missing value with further ones: `data.missing` has to name all of them."""
    if not found:
        return before
    return tuple(dict.fromkeys([*(before if before is not None else null_values() if is_text else [""]), *found]))


def find_rules(
    frame: pd.DataFrame, before: ColumnRules, categorical: list[str], is_text: bool = True, are_grouped: bool = False
) -> FoundRules:
    """Recognises numbers and dates that are written as text, texts that mean a missing value, and codes."""
    found = FoundRules(is_text=is_text)
    for name in map(str, frame.columns):
        if name in before.rules or name in categorical or not _is_text(frame[name]):
            continue
        texts = frame[name].astype(str).where(frame[name].notna(), "")
        distinct = list(texts[texts.str.strip() != ""].unique())
        if any(re.match(LEADING_ZERO, text) for text in distinct) and all(re.fullmatch(r"\d+", text) for text in distinct):
            found.rules[name] = ValueRule(type="text")
            found.notes[name] = "codes with leading zeros stay text"
        elif not _find_numbers(name, distinct, found, are_grouped) and not _find_dates(name, distinct, found):
            _find_gaps(name, texts, found)
            _find_blanks(name, frame[name], distinct, found)
    _leave_values(frame, found)
    return found


def _leave_values(frame: pd.DataFrame, found: FoundRules) -> None:
    """Takes back texts that mean a missing value in one column and are a value of another: the rule holds for all columns."""
    for text in list(found.missing):
        others = [name for name in map(str, frame.columns) if name not in found.notes and _has_text(frame[name], text)]
        if not others:
            continue
        found.missing.remove(text)
        for name in [name for name, note in found.notes.items() if repr(text) in note]:
            found.rules.pop(name, None)
            found.problems[name] = (
                f"has {text!r} for a missing value, which is a value of {', '.join(others[:5])}",
                f"--missing {text!r}, if it means a missing value there too",
            )
            del found.notes[name]


def _has_text(values: pd.Series[Any], text: str) -> bool:
    return _is_text(values) and bool((values.dropna().astype(str).str.strip() == text).any())


def _find_numbers(name: str, distinct: list[str], found: FoundRules, are_grouped: bool) -> bool:
    numbers = as_numbers(distinct, are_grouped)
    if numbers is None:
        return False
    found.rules[name] = numbers.rule
    found.notes[name] = f"read as numbers, as in {numbers.example!r}"
    if numbers.missing:
        found.add_missing(numbers.missing)
        found.notes[name] = f"numbers; {', '.join(map(repr, numbers.missing))} means a missing value"
    return True


def _find_dates(name: str, distinct: list[str], found: FoundRules) -> bool:
    dates = as_dates(distinct)
    if dates is None:
        return False
    if dates.rule is None or dates.other is None or "." in dates.rule:
        found.rules[name] = ValueRule(type="time", format=dates.rule)
        found.notes[name] = f"read as times, as in {dates.example!r}"
    else:
        found.problems[name] = (
            f"holds dates such as {dates.example!r}, in which day and month cannot be distinguished",
            f'add it to data.columns and write `times: {{{name}: {{format: "{dates.rule}"}}}}` (or "{dates.other}") under data',
        )
    return True


def _find_gaps(name: str, texts: pd.Series[str], found: FoundRules) -> None:
    """Finds texts that mean a missing value among others, and the few texts in a column of numbers."""
    stripped = texts.str.strip()
    others = not_numbers(stripped[stripped != ""])
    if others is not None:
        cells = [(row, text) for row, text in enumerate(stripped.tolist()) if text in others]
        places = [f"row {row + 2}: {text!r}" for row, text in cells[:10]]
        found.problems[name] = (
            f"is numeric but for {sum(others.values())} cells ({', '.join(places)})",
            "correct these cells, or add what means a missing value to data.missing (--missing TEXT)",
        )
        return
    distinct = list(stripped[stripped != ""].unique())
    few = [text for text in distinct if text.lower() in MISSING_ANYWHERE]
    if few and len(few) < len(distinct):
        found.add_missing(few)
        found.notes[name] = f"{', '.join(map(repr, few))} means a missing value"


def _find_blanks(name: str, values: pd.Series[Any], distinct: list[str], found: FoundRules) -> None:
    if not is_sentences(values) and any(text != text.strip() for text in distinct):
        found.trim = True
        found.notes.setdefault(name, "blanks around its texts are removed")


def kind_of(values: pd.Series[Any]) -> str:
    """Returns the type of a column in words."""
    import pandas as pd

    if values.dropna().empty:
        return "empty"
    if pd.api.types.is_datetime64_any_dtype(values):
        return "time"
    if pd.api.types.is_bool_dtype(values.dropna().infer_objects()):
        return "true/false"
    if pd.api.types.is_numeric_dtype(values):
        return "whole number" if bool((values.dropna() % 1 == 0).all()) else "number"
    return "sentences" if is_sentences(values) else "text"


def is_sentences(values: pd.Series[Any]) -> bool:
    """Returns whether a column holds sentences: several words in most rows, different in many."""
    if not _is_text(values):
        return False
    present = values.dropna().astype(str)
    if present.nunique() <= max(20, len(present) // 20):
        return False
    return bool(present.str.count(r"\S+").mean() >= WORDS)


def reason_to_leave_out(values: pd.Series[Any], rows: int) -> tuple[str, str] | None:
    """Returns why a column is not a feature, and how to use it nevertheless; None for a feature."""
    import pandas as pd

    name = str(values.name)
    if RANGE.fullmatch(name):
        return "has a name that would mean a range of columns", "rename it in the file"
    if INDEX_NAMES.fullmatch(name):
        return "is the row numbers of a saved table", f"--categorical {name!r}, if it is a category"
    distinct = values.nunique()
    if distinct == 0:
        return "is empty", "fill it in the file"
    if distinct == 1 and not values.isna().any():
        return "has a single value", "it can tell nothing"
    if pd.api.types.is_datetime64_any_dtype(values):
        return None
    if is_sentences(values):
        return "holds sentences", f"--text {name!r} for a model of this text"
    is_text = _is_text(values)
    if is_text and distinct > max(20, rows // 2):
        return "differs in nearly every row, so it identifies rows", f"--categorical {name!r}, if it is a category"
    if is_text and distinct > LEVELS_LIMIT:
        return f"has {distinct:,} distinct texts", f"--categorical {name!r}, if its values come again"
    if _numbers_rows(values):
        return "numbers the rows", f"--categorical {name!r}, if it is a category"
    if not is_text and _exceeds_doubles(values):
        reason = "holds whole numbers beyond 2^53, whose last digits a model does not see"
        return reason, f"--categorical {name!r} for codes; or write them in a larger unit, as seconds for nanoseconds"
    return None


def possible_task(values: pd.Series[Any]) -> str | None:
    """Returns the task for a target, or None if no task can predict it."""
    import pandas as pd

    present = values.dropna()
    distinct = present.nunique()
    if distinct < 2 or pd.api.types.is_datetime64_any_dtype(values):
        return None
    if _is_text(values):
        is_label = distinct <= min(LABELS_LIMIT, max(CLASSES_LIMIT, len(present) // 2))
        return "classification" if is_label and not is_sentences(values) else None
    if _numbers_rows(values):
        return None
    return "classification" if distinct <= CLASSES_LIMIT and bool((present % 1 == 0).all()) else "regression"


def rare_labels(target: pd.Series[Any], least: int) -> Counter[Any]:
    """Returns the labels with fewer than `least` rows, each with its rows."""
    counts = target.value_counts()
    return Counter({label: int(n) for label, n in counts.items() if n < least})


def _numbers_rows(values: pd.Series[Any]) -> bool:
    """Whether the values are distinct whole numbers that increase by one, or have a name of ids."""
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values) or len(values) < 10:
        return False
    if not values.is_unique or values.hasnans or bool((values % 1 != 0).any()):
        return False
    named = ID_NAMES.search(str(values.name).lower()) is not None
    return named or bool((values.diff().dropna() == 1).all())


def _exceeds_doubles(values: pd.Series[Any]) -> bool:
    """Whether a column holds whole numbers that float64 has not all exactly."""
    import pandas as pd

    if not pd.api.types.is_integer_dtype(values):
        return False
    return any(is_rounded(number) for number in values.dropna().unique().tolist())


def _is_text(values: pd.Series[Any]) -> bool:
    import pandas as pd

    return not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_datetime64_any_dtype(values))

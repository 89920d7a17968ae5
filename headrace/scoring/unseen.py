"""Values that training has not seen, in the answers to the rows of a file: `headrace.runtime.unseen_values` finds them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from headrace.client.requests import to_instances
from headrace.runtime.contract import Contract
from headrace.runtime.unseen_values import MAX_WARNINGS
from headrace.runtime.violations import ContractViolation
from headrace.scoring.rows import Line

PATH = re.compile(r"instances\.(\d+)\.(.*)", re.DOTALL)
UnseenWarning = dict[str, str]
"""`{"path", "message"}`, as in the answer to a request; the path is `row.` and the name of the field."""


def warnings_by_row(given: Sequence[UnseenWarning], contract: Contract, rows: Sequence[Any]) -> dict[int, list[UnseenWarning]]:
    """Returns the warnings of each row of a request.

    The service names the first hundred values only. If it has named a hundred, all of them are found here, by the contract.

    Args:
        given: the warnings in the answer, with paths as `instances.0.plan`.
        rows: the rows of the request as they were sent.
    """
    if len(given) >= MAX_WARNINGS:
        given = _all_warnings(contract, rows) or given
    found: dict[int, list[UnseenWarning]] = {}
    for one in given:
        if match := PATH.fullmatch(one["path"]):
            found.setdefault(int(match[1]), []).append({"path": f"row.{match[2]}", "message": one["message"]})
    return found


def _all_warnings(contract: Contract, rows: Sequence[Any]) -> list[UnseenWarning]:
    try:
        feeds = contract.to_feeds(to_instances(rows))
    except (ContractViolation, OverflowError):  # another version answered, which takes other values
        return []
    return contract.unseen(feeds, most=None).messages("instances")


def warnings_text(line: Line) -> str | None:
    """Returns the warnings of a row as a text: the field and the message of each."""
    found = [f"{_field(one)}: {one['message']}" for one in line.get("warnings") or ()]
    return "; ".join(found) or None


class UnseenCounts:
    """Counts values that training has not seen by field."""

    def __init__(self) -> None:
        self._fields: Counter[str] = Counter()

    def add(self, line: Line) -> None:
        """Counts the warnings of a row's line."""
        self._fields.update(_field(one) for one in line.get("warnings") or ())

    def merge(self, counts: dict[str, int]) -> None:
        """Adds the counts of other rows."""
        self._fields.update(counts)

    def to_dict(self) -> dict[str, int]:
        """Returns the number of values of each field, the most frequent first."""
        return dict(self._fields.most_common())


def describe_counts(counts: dict[str, int]) -> str:
    """Returns the counts as a line for people."""
    fields = ", ".join(f"{count:,} × {name}" for name, count in counts.items())
    return f"values that training has not seen: {fields}"


def _field(one: UnseenWarning) -> str:
    return one["path"].removeprefix("row.")

"""The parts of the recipe's section `data` that say how the values of columns are read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from headrace.recipe.section import Section
from headrace.runtime.values import ValueRule, check_time_format, seconds_of

TimePart = Literal["year", "month", "day", "weekday", "hour", "elapsed"]
TIME_PARTS: tuple[TimePart, ...] = ("month", "weekday", "hour", "elapsed")
"""The parts that a time column gives by default."""


RESERVED_FIELDS = {
    "instances": "requests have their rows under this name",
    "": "a field of a request needs a name",
}
"""Names that no feature of a table can have, and why."""


class TimeColumn(Section):
    """A column of times, and what the network gets of it."""

    format: str | None = None
    """The format of the texts as Python's `strptime` has it, for example `%d/%m/%Y`; by default ISO 8601."""
    features: list[TimePart] | None = None
    """Calendar parts: `year`, and as a sine and a cosine `month`, `day` (of the month), `weekday` and `hour`; and `elapsed`:
    the days since `since`. By default `[month, weekday, hour, elapsed]`; none for the column of a split by time."""
    since: str | None = None
    """What `elapsed` counts from: another column of `data.times`, or a day such as 2020-01-01; by default the mean of the
    training rows."""

    @field_validator("format")
    @classmethod
    def _check_format(cls, format: str | None) -> str | None:
        if format is not None:
            check_time_format(format)
        return format

    @field_validator("features")
    @classmethod
    def _in_order(cls, features: list[TimePart] | None) -> list[TimePart] | None:
        if features is not None and len(set(features)) < len(features):
            raise ValueError("a part is listed twice")
        return features

    @field_validator("since", mode="before")
    @classmethod
    def _as_text(cls, since: Any) -> Any:
        return since.isoformat() if hasattr(since, "isoformat") else since  # YAML reads 2020-01-01 as a date

    @property
    def rule(self) -> ValueRule:
        """How a value is read, for ingest and for the contract."""
        return ValueRule(type="time", format=self.format)


def as_times(value: Any) -> Any:
    """Returns `data.times` as a mapping, from a list of columns or a mapping."""
    if isinstance(value, list):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {name: {} if column is None else column for name, column in value.items()}
    return value


def as_rules(value: Any) -> Any:
    """Returns `data.parse` with `{column: text}` written as `{column: {type: text}}`."""
    if not isinstance(value, dict):
        return value
    return {name: {"type": rule} if isinstance(rule, str) else rule for name, rule in value.items()}


def check_since(times: dict[str, TimeColumn]) -> None:
    """
    Raises:
        ValueError: `since` is neither another column of times nor a day.
    """
    for name, column in times.items():
        if column.since is None or (column.since in times and column.since != name):
            continue
        try:
            seconds_of(column.since)
        except ValueError:
            raise ValueError(
                f"times.{name}.since: expected another column of data.times, or a day such as 2020-01-01; got {column.since!r}"
            ) from None

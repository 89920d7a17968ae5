"""The recipe's section `data.split`: how rows are divided into training, validation and test sets."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.periods import Period, parse_period
from headrace.recipe.section import Fraction, Section


class TimeSplit(Section):
    """A split by time: the rows with the latest values of `column` are the test set, earlier rows are for training."""

    column: str
    """A column with an order, for example a month or a date. It is not a feature, unless `data.times` names its parts."""
    test: int | float | str = "last"
    """The test set: `last`, the rows with the last value of `column`; a fraction such as 0.1, at least this share of the
    rows, those with the latest values; a length of time such as 30 days or 1 month, the rows of the latest such period; or a
    date or a value: the rows from it on, for example 2024-10-01. All but the last move on when newer rows are added."""

    @field_validator("test", mode="before")
    @classmethod
    def _check_test(cls, test: Any) -> Any:
        if isinstance(test, bool) or (isinstance(test, float) and not math.isfinite(test)):
            raise ValueError("expected last, a fraction such as 0.1, or a date such as 2024-10-01")
        return test.isoformat() if hasattr(test, "isoformat") else test  # YAML reads 2024-10-01 as a date

    @property
    def period(self) -> Period | None:
        """The length of time that the test set covers, where `test` is one."""
        return parse_period(self.test)

    @property
    def share(self) -> float | None:
        """The fraction of the rows that are the test set, where `test` is one."""
        return float(self.test) if isinstance(self.test, float) and 0 < self.test < 1 else None


class PredefinedSplit(Section):
    """A test set that the data defines."""

    column: str = "part"
    """The column that marks the test rows. It is not a feature. `part` names the part of a source with several parts."""
    test: str | int = "test"
    """Rows with this value are the test set; the others are for training and validation."""


class PerClass(Section):
    """A few labelled rows of each class, as in Planetoid (Yang, Cohen, Salakhutdinov 2016, arXiv:1603.08861). The remaining
    rows count as unlabelled."""

    train: int = Field(default=20, ge=1)
    """Training rows of each class."""
    validation: int = Field(default=500, ge=1)
    """Validation rows, of all classes together."""
    test: int = Field(default=1000, ge=1)
    """Test rows, of all classes together."""


class GroupSplit(Section):
    """Rows of a group are all in the same set, so that no group is both trained on and tested with."""

    column: str
    """The column that identifies the group, for example a person or a document. It is not a feature, unless `match` is
    `words`."""
    match: Literal["value", "words"] = "value"
    """`value`: equal values are a group. `words`: texts with the same words are a group, in upper or lower case; links, @names,
    digits and RT are ignored."""


class SplitConfig(Section):
    """How rows are divided. The set of a row depends on its content only, so it does not change when data is added."""

    test: Fraction = 0.2
    """Fraction of the rows in the test set (unless `time`, `predefined` or `per_class` defines it)."""
    validation: Fraction = 0.1
    """Fraction of the rows for early stopping."""
    seed: int = 7
    """Another seed gives another division."""
    time: TimeSplit | None = None
    predefined: PredefinedSplit | None = None
    per_class: PerClass | None = None
    group: GroupSplit | None = None

    @model_validator(mode="after")
    def _check_rows_are_left_to_train_on(self) -> SplitConfig:
        named = [name for name in ("time", "predefined", "per_class") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{named[0]} and {named[1]} both define the test set; remove one of them")
        if not named and self.test + self.validation >= 1:
            raise ValueError(f"test {self.test} and validation {self.validation} leave no rows to train on; lower one")
        return self

    @property
    def columns(self) -> list[str]:
        """Columns that divide rows and are therefore not features."""
        found = [part.column for part in (self.time, self.predefined) if part is not None]
        return found + ([self.group.column] if self.group is not None and self.group.match == "value" else [])

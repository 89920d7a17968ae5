"""How a recipe says that rows are divided into training, validation and test."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from headrace.recipe.section import Fraction, Section


class TimeSplit(Section):
    """The rows with the last value of `column` are the test set; earlier rows train."""

    column: str
    """A column that can be ordered: a month, a date. It orders the rows and is no feature."""
    test: Literal["last"] = "last"


class GivenSplit(Section):
    """The data says itself which rows are the test set."""

    column: str = "part"
    """It divides the rows and is no feature; `part` is the part of a source that comes in parts."""
    test: str | int = "test"
    """Rows with this value are the test set; the others train."""


class PerClass(Section):
    """A few labelled rows of each class, as of Planetoid (Yang, Cohen, Salakhutdinov 2016, arXiv:1603.08861). Further rows
    count as unlabelled."""

    train: int = Field(default=20, ge=1)
    """Rows of each class to train on."""
    validation: int = Field(default=500, ge=1)
    """Rows, of whatever class."""
    test: int = Field(default=1000, ge=1)
    """Rows, of whatever class."""


class GroupSplit(Section):
    """Rows of one group fall together, so that none is trained on and tested with."""

    column: str
    """The column that says the group: a person, a document. It is no feature, unless `alike` is `words`."""
    alike: Literal["value", "words"] = "value"
    """`value`: equal values are one group. `words`: texts with the same words are one, however they are written; links,
    @names, digits and RT count for nothing."""


class SplitConfig(Section):
    """How rows are divided. A row's place depends on its content alone, so it never moves when data arrives."""

    test: Fraction = 0.2
    """Share of rows for the test set (unless another field says which rows these are)."""
    validation: Fraction = 0.1
    """Share of rows for early stopping."""
    seed: int = 7
    """Another seed gives another division."""
    time: TimeSplit | None = None
    given: GivenSplit | None = None
    per_class: PerClass | None = None
    group: GroupSplit | None = None

    @model_validator(mode="after")
    def _leaves_rows_to_train_on(self) -> SplitConfig:
        said = [name for name in ("time", "given", "per_class") if getattr(self, name) is not None]
        if len(said) > 1:
            raise ValueError(f"{said[0]} and {said[1]} both say which rows are the test set; take one out")
        if not said and self.test + self.validation >= 1:
            raise ValueError(f"test {self.test} and validation {self.validation} leave no rows to train on; lower one")
        return self

    @property
    def columns(self) -> list[str]:
        """Columns that divide rows, and so are no features."""
        found = [part.column for part in (self.time, self.given) if part is not None]
        return found + ([self.group.column] if self.group is not None and self.group.alike == "value" else [])

"""The recipe's section `data.drift`: how much a later batch may differ from the rows that are already in the data."""

from __future__ import annotations

from pydantic import Field, model_validator

from headrace.recipe.section import Section


class BatchDrift(Section):
    """Limits on the distance between the values of a column in a new batch and in the data so far.

    The distance is the share of rows that would have to change for both distributions to be equal (total variation), less what
    chance explains in a batch of this size.
    """

    report: float = Field(default=0.1, gt=0.0, le=1.0)
    """Columns with at least this distance are printed, with a picture."""
    refuse: float | None = Field(default=None, gt=0.0, le=1.0)
    """A batch with such a column goes to quarantine. By default no batch is refused for its distance."""
    columns: list[str] | None = None
    """Columns to compare; by default features and targets, without times."""

    @model_validator(mode="after")
    def _check_order(self) -> BatchDrift:
        if self.refuse is not None and self.refuse < self.report:
            raise ValueError(f"refuse: {self.refuse:g} is below report: {self.report:g}; what is refused is reported as well")
        return self

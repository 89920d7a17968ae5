"""The recipe's section `monitor`: what is kept of the requests to a model, how it is monitored, and when it trains again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from headrace.errors import near_miss
from headrace.recipe.data import DataConfig
from headrace.recipe.duration import Duration, duration_seconds
from headrace.recipe.section import Fraction, Section
from headrace.runtime.contract import Contract


class RetrainConfig(Section):
    """When changed rows, or a larger error of true answers, train the model again. The gate decides about the new version, as
    about any other."""

    cooldown: Duration = "7d"
    """Shortest time between two trainings, for example `12h` or `7d`."""
    per_week: int = Field(default=1, ge=1)
    """Most trainings within seven days."""
    tolerance: float = Field(default=0.05, ge=0.0)
    """How much larger than on the test rows the error of true answers may be, as a fraction, before a training is worth it."""

    @property
    def cooldown_seconds(self) -> float:
        return duration_seconds(self.cooldown)


class MonitorConfig(Section):
    """How a served model is monitored."""

    every: Duration | None = None
    """How often the model is looked at, for example `1h`: `headrace up` then makes the deployment `monitor-NAME`. By default
    only `headrace monitor` looks."""
    alpha: Fraction = 0.05
    """The chance that a model whose rows do not change ever raises an alarm, over all looks and fields together."""
    tolerance: float = Field(default=0.02, ge=0.0, lt=1.0)
    """The distance from the training rows that is harmless: the share of rows that would have to change (total variation)."""
    rows: Literal["independent", "correlated"] = "correlated"
    """Whether rows of the same hour may depend on each other, as those of one customer do. `independent` finds a change sooner,
    and raises false alarms where they do."""
    retrain: RetrainConfig | None = None
    """When an alarm trains the model again. By default it never does, and a person decides."""

    personal: list[str] = []
    """Columns with personal data, for example `[name, email]`: their values are in no sample of requests."""

    @property
    def every_seconds(self) -> float | None:
        return None if self.every is None else duration_seconds(self.every)

    @field_validator("personal")
    @classmethod
    def _check_twice(cls, personal: list[str]) -> list[str]:
        if twice := sorted({name for name in personal if personal.count(name) > 1}):
            raise ValueError(f"{twice} are listed twice")
        return personal


def check_personal(monitor: MonitorConfig, data: DataConfig) -> None:
    """Checks the personal columns against the columns that the recipe names; without them, ingest compares them with the data.

    Raises:
        ValueError: a column is unknown, or is what the model predicts.
    """
    for name in monitor.personal:
        if name in data.targets:
            raise ValueError(
                f"monitor.personal: {name!r} is what the model predicts, and answers are recorded for feedback; remove it"
            )
        if data.columns is not None and name not in data.columns:
            raise ValueError(f"monitor.personal: {name!r} is not in data.columns; {near_miss(name, data.columns)}")


def personal_fields(monitor: MonitorConfig, data: DataConfig, contract: Contract) -> list[str]:
    """Returns the fields of a contract that hold the personal columns. A column that clients do not send has none.

    The field of a text may have another name than its column: a personal text makes every free text of the contract personal.
    """
    columns = set(monitor.personal)
    is_personal_text = data.text is not None and data.text.column in columns
    return [
        field.name
        for field in contract.inputs
        if columns & {field.name, field.column}
        or (is_personal_text and field.dtype == "string" and field.levels is None and field.shape == ())
    ]

"""The recipe's section `monitor`: what is kept of the requests to a model, to watch it."""

from __future__ import annotations

from pydantic import field_validator

from headrace.errors import near_miss
from headrace.recipe.data import DataConfig
from headrace.recipe.section import Section
from headrace.runtime.contract import Contract


class MonitorConfig(Section):
    """How a served model is watched."""

    personal: list[str] = []
    """Columns with personal data, for example `[name, email]`: their values are in no sample of requests."""

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

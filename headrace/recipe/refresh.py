"""The recipe's section `refresh`: when the next batch of the source is fetched, and the model released on all data."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import available_timezones

from pydantic import field_validator, model_validator

from headrace.errors import near_miss
from headrace.recipe.data import DataConfig
from headrace.recipe.duration import Duration, duration_seconds
from headrace.recipe.section import Section

FIELDS = 5
"""Of a cron expression: minute, hour, day of the month, month, day of the week."""


class RefreshConfig(Section):
    """When `headrace up` lets Prefect fetch the next batch and release: by `cron`, or `every` so often."""

    cron: str | None = None
    """A cron expression, for example `"0 3 1 * *"`: 03:00 on the first of each month. `headrace up` makes the deployment
    `refresh-NAME` from it."""
    timezone: str = "UTC"
    """The time zone of `cron`, for example `Europe/Berlin`. Where summer time skips a time, the run is after it."""
    every: Duration | None = None
    """How often instead, for example `12h` or `1d`."""

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, cron: str | None) -> str | None:
        if cron is not None:
            check_cron(cron)
        return cron

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        if timezone != "UTC" and timezone not in (known := available_timezones()):
            raise ValueError(f"unknown time zone; {near_miss(timezone, known)}")
        return timezone

    @model_validator(mode="after")
    def _check_one_schedule(self) -> RefreshConfig:
        if (self.cron is None) == (self.every is None):
            given = "both are given" if self.cron else "neither is given"
            raise ValueError(f"expected either cron or every, and {given}; for example cron: '0 3 * * *', or every: 1d")
        if self.cron is None and "timezone" in self.model_fields_set:
            raise ValueError("timezone belongs to cron; with every, remove it")
        return self

    @property
    def schedule(self) -> dict[str, Any]:
        """The schedule as `prefect.yaml` has it."""
        if self.cron is not None:
            return {"cron": self.cron, "timezone": self.timezone, "active": True}
        return {"interval": duration_seconds(str(self.every)), "active": True}


def check_cron(cron: str) -> None:
    """
    Raises:
        ValueError: it is not a cron expression of five fields, or one that never matches.
    """
    from cronsim import CronSim, CronSimError

    example = 'for example "0 3 1 * *": minute, hour, day of the month, month, day of the week'
    if len(cron.split()) != FIELDS:
        raise ValueError(f"expected a cron expression of {FIELDS} fields, {example}")
    try:
        CronSim(cron, datetime.now(UTC))  # also refuses a date that never comes, such as 30 February
    except CronSimError as error:
        raise ValueError(f"no cron expression: {error}; {example}") from None


def check_refresh(refresh: RefreshConfig | None, data: DataConfig) -> None:
    """Checks that the source can bring a next batch.

    Raises:
        ValueError: it brings all rows at once.
    """
    if refresh is not None and data.incremental is None:
        raise ValueError(
            "refresh: data.incremental is not set, so the source brings all rows at once and has no next batch; write "
            "`incremental: {column: COLUMN, first: N}` under data, or remove refresh"
        )

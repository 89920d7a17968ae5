"""The recipe's section `gate`: the conditions under which a candidate is released."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.duration import duration_seconds
from headrace.recipe.section import Section


class BeatChampion(Section):
    """A paired comparison with the champion on the same test rows."""

    metric: str
    """The metric to compare."""
    margin: float = 0.0
    """How much better the candidate has to be; a negative margin accepts a candidate that is slightly worse."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    """One-sided confidence that the difference exceeds the margin."""


class GateConfig(Section):
    """Conditions that a candidate has to meet before it is served."""

    require: dict[str, str] = {}
    """Bounds on metrics of the test set, for example `accuracy: ">= 0.95"`."""
    beat_champion: BeatChampion | None = None
    approval: Literal["auto", "manual"] = "auto"
    """`manual`: the release waits until a person approves the candidate in Prefect's form, by `headrace approve` or the API."""
    approvers: int = Field(default=1, ge=1, le=9)
    """How many different people have to approve; one rejection rejects."""
    remind: str | None = "1d"
    """How often people are reminded of a candidate that waits, for example `12h` or `1d`; `none` for never."""
    expires: str | None = "14d"
    """How long a candidate waits before it can no longer be approved, for example `7d`; `none` for ever."""

    @property
    def metrics(self) -> list[str]:
        """Metrics that the gate uses."""
        return [*self.require, *([self.beat_champion.metric] if self.beat_champion else [])]

    @property
    def main_metric(self) -> str | None:
        """The metric by which models are compared, else the first one with a bound; None without either."""
        return self.beat_champion.metric if self.beat_champion else next(iter(self.require), None)

    @field_validator("remind", "expires")
    @classmethod
    def _check_durations(cls, duration: str | None) -> str | None:
        if duration in (None, "none"):
            return None
        duration_seconds(duration)
        return duration

    @model_validator(mode="after")
    def _check_approvers(self) -> GateConfig:
        if self.approvers > 1 and self.approval != "manual":
            raise ValueError(f"approvers: {self.approvers} needs approval: manual")
        return self

    @property
    def remind_seconds(self) -> float | None:
        return None if self.remind is None else duration_seconds(self.remind)

    @property
    def expires_seconds(self) -> float | None:
        return None if self.expires is None else duration_seconds(self.expires)

    @field_validator("require")
    @classmethod
    def _check_bounds(cls, require: dict[str, str]) -> dict[str, str]:
        for metric, bound in require.items():
            if not re.fullmatch(r"\s*(>=|<=|>|<)\s*-?\d+(\.\d+)?(e-?\d+)?\s*", bound):
                raise ValueError(f'{metric}: invalid bound {bound!r}; write for example ">= 0.95"')
        return require

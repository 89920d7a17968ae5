"""The recipe's section `serve.rollout`: how a new version takes the champion's place, and what sends it back."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.section import Fraction, Section

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_BAKE_SECONDS = 24 * 3600.0


class Bounds(Section):
    """What a new version may do while it is watched, measured against the champion."""

    error_rate: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Share of answers with a status of 500 or above, beyond the champion's own share."""
    latency: float = Field(default=2.0, ge=1.0)
    """Its 99th percentile, in multiples of the champion's."""
    distribution: float = Field(default=0.2, gt=0.0)
    """Population stability index of its answers against the champion's."""
    agreement: Fraction | None = 0.8
    """Share of the same requests that a shadow has to answer as the champion does; null: any."""
    least_requests: int = Field(default=50, ge=1)
    """With fewer, nothing is judged."""


class RolloutConfig(Section):
    """How a new version takes the champion's place."""

    strategy: Literal["rolling", "canary", "shadow"] = "rolling"
    """All at once, for a share of the requests at first, or for copies of requests at first."""
    steps: list[float] = [5, 25, 50]
    """Percent of the requests that the new version gets, one step after the other."""
    bake: str = "0s"
    """How long the new version is watched: at each step, or after a rolling replacement. Such as `30s` or `5m`."""
    bounds: Bounds = Bounds()

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: list[float]) -> list[float]:
        rising = all(low < high for low, high in pairwise(steps))
        if not steps or not rising or steps[0] < 0.01 or steps[-1] > 100:
            raise ValueError("percent that rise, from 0.01 to 100, such as [5, 25, 50]")
        return steps

    @field_validator("bake")
    @classmethod
    def _duration(cls, bake: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?[smh]", bake) or _seconds(bake) > LONGEST_BAKE_SECONDS:
            raise ValueError("a duration of at most 24h, such as 30s, 5m or 1.5h")
        return bake

    @model_validator(mode="after")
    def _is_watched(self) -> RolloutConfig:
        if self.strategy != "rolling" and not self.bake_seconds:
            raise ValueError(f"bake: a {self.strategy} is watched for some time at each step; set it, such as 5m")
        return self

    @property
    def bake_seconds(self) -> float:
        return _seconds(self.bake)


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * UNITS[duration[-1]]

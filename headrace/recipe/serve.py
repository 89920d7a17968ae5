"""The recipe's section `serve`: replicas, and how a new version replaces the champion."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from headrace.recipe.section import Fraction, Section

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_BAKE_SECONDS = 24 * 3600.0


class Bounds(Section):
    """Limits that a new version is compared with while it is watched; beyond one of them it is rolled back."""

    error_rate: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Fraction of requests that fail (a status of 500 or above, or no finite answer), in excess of the champion's."""
    refused_rate: float = Field(default=0.01, ge=0.0, lt=1.0)
    """Fraction of requests that a canary or shadow refuses (a status of 400 to 499), in excess of the champion's."""
    latency: float = Field(default=2.0, ge=1.0)
    """99th percentile of the latency, as a multiple of the champion's."""
    distribution: float = Field(default=0.2, gt=0.0)
    """Population stability index (PSI) of the answers against the champion's."""
    agreement: Fraction | None = 0.8
    """Fraction of requests that a shadow answers like the champion, at least; null: no limit."""
    min_requests: int = Field(default=50, ge=1)
    """Requests that are needed to exceed a bound."""
    detectable: float = Field(default=0.1, gt=0.0, le=1.0)
    """Excess of failing requests above `error_rate` that a step has to notice with a probability of 80 %; with too few requests
    for that, it is not judged."""


class RolloutConfig(Section):
    """How a new version replaces the champion."""

    strategy: Literal["rolling", "canary", "shadow"] = "rolling"
    """`rolling`: replicas are replaced one by one. `canary`: a fraction of the requests first. `shadow`: copies of requests
    first."""
    steps: list[float] = [5, 25, 50]
    """Percent of the requests that the new version gets in each step."""
    bake: str = "0s"
    """How long the new version is watched, in each step or after a rolling replacement, for example `30s` or `5m`."""
    bounds: Bounds = Bounds()

    @field_validator("steps")
    @classmethod
    def _check_steps(cls, steps: list[float]) -> list[float]:
        rising = all(low < high for low, high in pairwise(steps))
        if not steps or not rising or steps[0] < 0.01 or steps[-1] > 100:
            raise ValueError("expected ascending percentages from 0.01 to 100, for example [5, 25, 50]")
        return steps

    @field_validator("bake")
    @classmethod
    def _check_bake(cls, bake: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?[smh]", bake) or _seconds(bake) > LONGEST_BAKE_SECONDS:
            raise ValueError("expected a duration of at most 24h, for example 30s, 5m or 1.5h")
        return bake

    @model_validator(mode="after")
    def _check_trial_is_watched(self) -> RolloutConfig:
        if self.strategy != "rolling" and not self.bake_seconds:
            raise ValueError(f"bake: a {self.strategy} needs a time to be watched in each step; set it, for example to 5m")
        return self

    @property
    def bake_seconds(self) -> float:
        return _seconds(self.bake)


class ServeConfig(Section):
    """How the champion is served."""

    replicas: int = Field(default=2, ge=1, le=64)
    """Number of replicas."""
    runtime: Literal["onnx", "llama.cpp"] | None = None
    """Engine that computes the answers; by default `llama.cpp` for an imported model in GGUF, and `onnx` for all others."""
    threads: int = Field(default=1, ge=1)
    """Threads of the runtime in a replica."""
    context: int | None = Field(default=None, ge=256, le=2**20)
    """For language models of llama.cpp: tokens of a prompt and its answer together, rounded up to a multiple of 256; by
    default those that the model was trained for, at most 4096. More take more memory."""
    parallel: int | None = Field(default=None, ge=1, le=64)
    """For language models of llama.cpp: requests that a replica answers at once (4 by default), each with a context of its
    own; further ones wait."""
    unknown: Literal["warn", "refuse"] = "warn"
    """For tables: what happens to categories that no training row had, and to numbers outside of the range of training.
    `warn`: they are answered, with `warnings` beside the answer; `refuse`: status 422."""
    rollout: RolloutConfig = RolloutConfig()


def check_runtime(serve: ServeConfig, task: str, is_import: bool) -> None:
    """Checks the fields of language models.

    Raises:
        ValueError: one is set for another model.
    """
    is_language_model = is_import and task == "text-generation"
    if is_language_model and serve.runtime == "onnx":
        raise ValueError("serve.runtime: an imported language model is served by llama.cpp; remove it")
    given = {"runtime": serve.runtime == "llama.cpp", "context": serve.context, "parallel": serve.parallel}
    if not is_language_model and (name := next((name for name, value in given.items() if value), None)):
        raise ValueError(f"serve.{name}: applies to imported language models (task: text-generation) only; remove it")


def _seconds(duration: str) -> float:
    return float(duration[:-1]) * UNITS[duration[-1]]

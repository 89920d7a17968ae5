"""Every point of a flow at which something can be killed, made from the steps that an undisturbed run has taken."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.kills.steps import Mark

SEED = os.environ.get("HEADRACE_KILL_SEED") or "1"
"""Of the random instants within steps. The same seed gives the same instants, in any order and selection. `make test-all` draws
one each time; `make test` keeps to the same few kills, so that a change is judged by what it has changed."""
ONLY = os.environ.get("HEADRACE_KILL_ONLY", "")
"""A part of the names of kills, to run these alone."""


@dataclass(frozen=True)
class Kill:
    """Who is killed at which point of a flow."""

    victim: str
    when: str
    """`before` or `after` a step, while the flow waits there; or `inside`, at a random instant."""
    step: str

    def __str__(self) -> str:
        return f"{self.victim} {self.when} {self.step}"

    @property
    def fraction(self) -> float:
        """The share of the step's usual time after which the kill comes."""
        return random.Random(f"{SEED} {self}").random()


@dataclass(frozen=True)
class Step:
    """A step of an undisturbed run."""

    name: str
    seconds: float


def steps_of(marks: Sequence[Mark]) -> list[Step]:
    """The steps of an undisturbed run, in order."""
    ends = {mark.step: mark.at for mark in marks if mark.when == "after"}
    return [Step(mark.step, ends[mark.step] - mark.at) for mark in marks if mark.when == "before"]


def every_kill(steps: Sequence[Step], victim: str) -> Iterator[Kill]:
    """Before each step, inside each, and after the last one; the end of a step is the beginning of the next."""
    for step in steps:
        yield Kill(victim, "before", step.name)
        yield Kill(victim, "inside", step.name)
    yield Kill(victim, "after", steps[-1].name)


def spread(victims: Sequence[str], steps: Sequence[Step]) -> list[Kill]:
    """One kill of each victim, inside steps that are spread over the flow."""
    count = 2 * len(victims)
    return [Kill(victim, "inside", steps[(2 * i + 1) * len(steps) // count].name) for i, victim in enumerate(victims)]

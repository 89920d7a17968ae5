"""Learning-rate schedules. A schedule depends only on the step, so it has no state to save or restore."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from headrace.recipe.training import TrainConfig

Schedule = Callable[[int], float]
"""Returns the factor of `train.learning_rate` for the next step, given the number of steps done."""

ONE_CYCLE_WARMUP = 0.3
FIRST = 1 / 25
"""Where one_cycle starts, as a factor of the peak; this and `LAST` are the values of torch's `OneCycleLR` and fastai."""
LAST = FIRST / 10_000


def make_schedule(config: TrainConfig, steps: int) -> Schedule:
    """Returns the schedule that the recipe names, over `steps` steps of the optimizer."""
    warmup = config.warmup if config.warmup is not None else ONE_CYCLE_WARMUP if config.schedule == "one_cycle" else 0.0
    rising = warmup * steps
    return {"constant": constant, "cosine": cosine, "one_cycle": one_cycle}[config.schedule](rising, steps)


def constant(rising: float, steps: int) -> Schedule:
    """Rises linearly, then stays at the peak."""
    return lambda done: min(1.0, (done + 1) / (round(rising) + 1))


def cosine(rising: float, steps: int) -> Schedule:
    """Rises linearly, then falls to zero along half a cosine (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    up = round(rising)
    down = max(1, steps - up)
    return lambda done: (done + 1) / (up + 1) if done < up else between(1.0, 0.0, min(1.0, (done - up) / down))


def one_cycle(rising: float, steps: int) -> Schedule:
    """Rises from a 25th along half a cosine, then falls almost to zero along another (Smith 2018, arXiv:1803.09820)."""
    top, last = max(rising - 1, 0.0), max(steps - 1, 1)

    def at(done: int) -> float:
        if done <= top:
            return between(FIRST, 1.0, done / top if top else 1.0)
        return between(1.0, LAST, min(1.0, (done - top) / (last - top)))

    return at


def between(start: float, end: float, share: float) -> float:
    """Interpolates from `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + cos(pi * share)) / 2

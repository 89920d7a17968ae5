"""How the learning rate moves. A schedule is a function of the step alone, so there is nothing to save or to restore."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from headrace.recipe.training import TrainConfig

Schedule = Callable[[int], float]
"""From the steps done so far to the share of `train.learning_rate` that the next step takes."""

ONE_CYCLE_WARM_UP = 0.3
FIRST = 1 / 25
"""Where one cycle starts, as a share of the peak; this and the next as in torch's `OneCycleLR` and fastai."""
LAST = FIRST / 10_000


def make_schedule(config: TrainConfig, steps: int) -> Schedule:
    """The schedule that the recipe names, over `steps` of the optimizer."""
    share = config.warm_up if config.warm_up is not None else ONE_CYCLE_WARM_UP if config.schedule == "one_cycle" else 0.0
    rising = share * steps
    return {"constant": constant, "cosine": cosine, "one_cycle": one_cycle}[config.schedule](rising, steps)


def constant(rising: float, steps: int) -> Schedule:
    """A straight rise, then the peak."""
    return lambda done: min(1.0, (done + 1) / (round(rising) + 1))


def cosine(rising: float, steps: int) -> Schedule:
    """A straight rise, then half a cosine down to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    up = round(rising)
    down = max(1, steps - up)
    return lambda done: (done + 1) / (up + 1) if done < up else between(1.0, 0.0, min(1.0, (done - up) / down))


def one_cycle(rising: float, steps: int) -> Schedule:
    """Half a cosine up from a 25th, another down to almost nothing (Smith 2018, arXiv:1803.09820)."""
    top, last = max(rising - 1, 0.0), max(steps - 1, 1)

    def at(done: int) -> float:
        if done <= top:
            return between(FIRST, 1.0, done / top if top else 1.0)
        return between(1.0, LAST, min(1.0, (done - top) / (last - top)))

    return at


def between(start: float, end: float, share: float) -> float:
    """From `start` to `end` along half a cosine."""
    return end + (start - end) * (1 + cos(pi * share)) / 2

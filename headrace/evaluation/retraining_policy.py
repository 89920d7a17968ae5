"""When to retrain: the decision after each batch, from the errors of the model in production.

The monitoring decides by it for the models that serve, with each 200 true answers as a batch, and `headrace simulate` for
batches of the past: what is simulated is what happens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headrace.evaluation.error_budget import confidence_of


@dataclass(frozen=True)
class Errors:
    """The errors of one model on the rows of one batch."""

    rows: int
    mean: float
    variance: float
    """Of single rows, with rows - 1 as the divisor."""

    @classmethod
    def of(cls, losses: NDArray[np.float64]) -> Errors:
        """Summarises losses `(rows,)`."""
        return cls(len(losses), float(losses.mean()), float(losses.var(ddof=1)) if len(losses) > 1 else math.inf)


@dataclass(frozen=True)
class State:
    """What is known about the model in production when a batch and its truth have arrived."""

    reference: Errors
    """The errors that count as normal: at first, those on the test rows on which the model was judged."""
    newest: Errors
    """Its errors on the batch."""
    looks: int
    """Batches that were compared with this reference, this one included."""
    since_training: int
    """Batches that have arrived since the last training, this one included."""
    tries: int = 0
    """Trainings since the error was last normal."""
    drifted: Sequence[str] = field(default=())
    """Columns in which a drift test found a change."""


@dataclass(frozen=True)
class RetrainingPolicy:
    """Settings of the decision."""

    tolerance: float = 0.05
    """How much larger than its reference the error may be, as a fraction, before it counts as worse."""
    confidence: float = 0.95
    """All looks at one reference together find a model worse that is not with a chance of at most 1 - confidence."""
    cooldown: int = 1
    """Fewest batches between two trainings."""
    tries: int = 3
    """Trainings after which an error that stays larger counts as normal: more of them would not help."""


def next_state(kept: State, newest: Errors) -> State:
    """Returns what is known once the next batch has come, from what was kept after the one before."""
    looks, since = kept.looks + 1, kept.since_training + 1
    return replace(kept, newest=newest, looks=looks, since_training=since, drifted=())


def should_retrain(state: State, policy: RetrainingPolicy) -> str | None:
    """Returns why the model in production should be trained again, in words; None if it should not.

    The first training after a change may come too early: the rows that show the change are the test rows of the candidate, not
    its training rows. So there is a second try after one batch, and a third after two more.
    """
    if state.since_training < max(policy.cooldown, state.tries):
        return None
    if state.drifted:
        return f"drift in {', '.join(state.drifted)}"
    p = p_of_worse(state, policy)
    if p is None:
        return None
    return (
        f"the error {state.newest.mean:.4g} is more than {policy.tolerance:.0%} above the reference {state.reference.mean:.4g} "
        f"(p = {p:.2g}, look {state.looks})"
    )


def p_of_worse(state: State, policy: RetrainingPolicy) -> float | None:
    """Returns the p-value if the error on the newest batch is significantly above its reference, else None.

    It is compared with `(1 + tolerance)` times the reference by Welch's one-sided test (Welch 1947, Biometrika 34:28). Look k
    spends 1 / (k (k + 1)) of the error budget (alpha spending, as the gate does; Foster & Stine 2008, JRSS B 70:429), so that
    the level holds however many batches arrive. Rows of a batch count as independent: where they err together, for example all
    flights of a stormy day, the tolerance is what keeps a chance difference from a training.
    """
    p = _welch(state.newest, state.reference, 1 + policy.tolerance)
    return p if p <= 1 - confidence_of(state.looks, policy.confidence) else None


def after_decision(state: State, policy: RetrainingPolicy, trained: bool, test: Errors | None) -> State:
    """Returns what is kept until the next batch.

    Args:
        trained: whether a model was trained.
        test: its errors on its test rows, if it was promoted.
    """
    if not trained:
        if state.tries and p_of_worse(state, policy) is None:  # back to normal
            return replace(state, reference=state.newest, looks=0, tries=0)
        return state
    tries, now = state.tries + 1, test or state.newest
    if tries >= policy.tries:
        return replace(state, reference=now, looks=0, since_training=0, tries=0)
    if test is not None and test.mean < state.reference.mean:
        return replace(state, reference=test, looks=0, since_training=0, tries=0)
    return replace(state, since_training=0, tries=tries)


def _welch(newest: Errors, reference: Errors, factor: float) -> float:
    """The p-value of: the mean of `newest` is at most `factor` times that of `reference`."""
    from scipy import stats

    ours, theirs = newest.variance / newest.rows, factor**2 * reference.variance / reference.rows
    if not math.isfinite(ours + theirs):  # a single row
        return 1.0
    difference = newest.mean - factor * reference.mean
    if ours + theirs == 0:
        return 0.0 if difference > 0 else 1.0
    freedom = (ours + theirs) ** 2 / (ours**2 / (newest.rows - 1) + theirs**2 / (reference.rows - 1))
    return float(stats.t.sf(difference / math.sqrt(ours + theirs), freedom))

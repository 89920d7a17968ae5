"""A confidence sequence for the mean of bounded scores: an interval that holds at all times together.

For the real quality of a served model, once true answers are known: whether each row was right, or its error, clipped. The
hedged capital of Waudby-Smith & Ramdas 2024 (JRSS B 86:1, *Estimating means of bounded random variables by betting*, section
4): bets for and against each candidate mean, and the interval has the means against which not enough was won. With probability
1 − alpha it contains the mean at every time, whatever the distribution within the bounds.

Assumed: given the scores before, each score has the same mean. If quality changes, the interval is of no single mean: compare
periods, each with its own sequence. Scores that depend on each other through their mean, as rows of one customer may, break
this.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from headrace.errors import DataError

MEANS = 512
"""Candidate means, of scores from 0 to 1; the interval is widened to the next one."""
LARGEST_BET = 0.5
"""Share of the wealth that may be lost with one score."""
MAX_WINDOWS = 4_096
"""Latest windows whose ids are kept, so that each counts once."""
PRIOR_ROWS, PRIOR_VARIANCE = 1.0, 0.25
"""The variance is estimated as if one row with variance 1/4 had been seen before."""


class MeanSequence(BaseModel):
    """The state of a confidence sequence: JSON, about 20 KB, and all that further scores need."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = 1
    alpha: float = Field(default=0.05, gt=0, lt=1)
    lowest: float = 0.0
    highest: float = 1.0
    """Bounds of the scores."""
    rows: int = 0
    total: float = 0.0
    """Sum of the scores, scaled to 0 to 1."""
    deviations: float = 0.0
    """Sum of squared deviations from the means before each score, so scaled."""
    log_above: list[float] = []
    log_below: list[float] = []
    """Logarithm of the wealth of bets that the mean is above, or below, each candidate."""
    windows: list[str] = []
    """Ids of the latest windows that were added."""

    @property
    def mean(self) -> float | None:
        """The mean of the scores; None without any."""
        return self.lowest + (self.highest - self.lowest) * self.total / self.rows if self.rows else None

    @property
    def interval(self) -> tuple[float, float]:
        """The interval after these scores; without any, the bounds of the scores."""
        if not self.rows:
            return self.lowest, self.highest
        candidates, limit = _candidates(), np.log(2 / self.alpha)
        above, below = np.array(self.log_above) >= limit, np.array(self.log_below) >= limit
        # The wealth falls with the candidate for `above`, and rises for `below`; between two candidates nothing is excluded.
        low = candidates[np.flatnonzero(above).max()] if above.any() else 0.0
        high = candidates[np.flatnonzero(below).min()] if below.any() else 1.0
        span = self.highest - self.lowest
        return self.lowest + span * float(low), self.lowest + span * float(high)

    def add(self, window: str, scores: NDArray[Any]) -> MeanSequence:
        """Returns the sequence with the scores `(rows,)` of one more window. A window that was added before changes nothing.

        Scores beyond the bounds count as the bounds.

        Raises:
            DataError: a score is NaN.
        """
        if window in self.windows:
            return self
        x = (np.clip(np.asarray(scores, dtype=np.float64), self.lowest, self.highest) - self.lowest) / (
            self.highest - self.lowest
        )
        if np.isnan(x).any():
            raise DataError(
                f"{int(np.isnan(x).sum())} of {len(x)} scores are NaN",
                where=f"window {window}",
                hint="leave out the rows without a true answer",
            )
        bets, deviations = self._bets(x)
        candidates = _candidates()
        above, below = self._log_wealth(x, bets, candidates)
        return self.model_copy(
            update={
                "rows": self.rows + len(x),
                "total": self.total + float(x.sum()),
                "deviations": deviations,
                "log_above": above.tolist(),
                "log_below": below.tolist(),
                "windows": [*self.windows, window][-MAX_WINDOWS:],
            }
        )

    def _bets(self, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """Returns the bet on each score, which depends on the scores before it only, and the sum of squared deviations."""
        number = self.rows + np.arange(1, len(x) + 1)
        means = (PRIOR_ROWS / 2 + self.total + np.cumsum(x)) / (PRIOR_ROWS + number)
        squares = self.deviations + np.cumsum((x - means) ** 2)
        before = np.concatenate([[self.deviations], squares[:-1]]) if len(x) else squares
        variance = (PRIOR_VARIANCE * PRIOR_ROWS + before) / (PRIOR_ROWS + number - 1)
        bets = np.sqrt(2 * np.log(2 / self.alpha) / (variance * number * np.log(1 + number)))
        return bets, float(squares[-1]) if len(x) else self.deviations

    def _log_wealth(
        self, x: NDArray[np.float64], bets: NDArray[np.float64], candidates: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        above = np.array(self.log_above) if self.log_above else np.zeros(MEANS)
        below = np.array(self.log_below) if self.log_below else np.zeros(MEANS)
        for start in range(0, len(x), 1_000):  # at most 1,000 × 512 numbers at once
            score, bet = x[start : start + 1_000, None], bets[start : start + 1_000, None]
            gain = score - candidates
            above = above + np.log1p(np.minimum(bet, LARGEST_BET / candidates) * gain).sum(axis=0)
            below = below + np.log1p(-np.minimum(bet, LARGEST_BET / (1 - candidates)) * gain).sum(axis=0)
        return above, below


def _candidates() -> NDArray[np.float64]:
    """Returns the candidate means, closer to each other at both ends: `(512,)`, without 0 and 1."""
    angle = np.pi * np.arange(1, MEANS + 1) / (MEANS + 1)
    found: NDArray[np.float64] = (1 - np.cos(angle)) / 2
    return found

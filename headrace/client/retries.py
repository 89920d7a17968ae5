"""Retries: exponential backoff with full jitter.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from headrace.client.errors import CallFailed, RateLimited, TimedOut, Unavailable

BASE_SECONDS = 0.1
CAP_SECONDS = 10.0
RETRY_STATUSES = frozenset({None, 429, 502, 503})
"""Statuses after which a retry may succeed; None: the connection failed. Not 504: the gateway has already waited."""


@dataclass
class RetryBudget:
    """The time limit of one call, all attempts and pauses included."""

    seconds: float
    retries: int
    is_safe: bool = True
    """Whether the request can be sent twice without harm."""
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.seconds
        self._attempts = 0

    def remaining(self) -> float:
        """Returns the seconds that are left for the next attempt.

        Raises:
            TimedOut: no time is left.
        """
        remaining = self._deadline - self.clock()
        if remaining <= 0:
            raise TimedOut(f"no answer within {self.seconds:g} s")
        return remaining

    def pause_after(self, error: CallFailed) -> float:
        """Returns the seconds to wait before the next attempt: random, up to 0.1 s doubled with each attempt, at most 10 s, and
        at least the `Retry-After` of the response.

        Raises:
            CallFailed: `error`, when a retry cannot succeed or no attempt or time is left.
        """
        is_temporary = isinstance(error, Unavailable | RateLimited) and error.status in RETRY_STATUSES
        if not (is_temporary and self.is_safe and self._attempts < self.retries):
            raise error
        longest = min(CAP_SECONDS, BASE_SECONDS * 2.0**self._attempts)
        self._attempts += 1
        pause = max(self.draw(0.0, longest), error.retry_after or 0.0)
        if self.clock() + pause >= self._deadline:
            raise error
        return pause

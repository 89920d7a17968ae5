"""When to ask again: exponential backoff with full jitter.

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
WORTH_ANOTHER_TRY = frozenset({None, 429, 502, 503})
"""Statuses after which another try may succeed; None: the connection failed. A 504 is none: the door has waited long enough."""


@dataclass
class Patience:
    """How long one call may take with all its tries, and what is left of it."""

    seconds: float
    retries: int
    is_safe: bool = True
    """Whether the request may arrive twice."""
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        self._deadline = self.clock() + self.seconds
        self._tries = 0

    def left(self) -> float:
        """Seconds for the next try.

        Raises:
            TimedOut: none are left.
        """
        left = self._deadline - self.clock()
        if left <= 0:
            raise TimedOut(f"no answer within {self.seconds:g} s")
        return left

    def pause_after(self, error: CallFailed) -> float:
        """Seconds to wait before the next try: drawn from 0 to 0.1 s times two a try, at most 10 s, never less than asked for.

        Raises:
            CallFailed: `error` itself, when it is final.
        """
        is_passing = isinstance(error, Unavailable | RateLimited) and error.status in WORTH_ANOTHER_TRY
        if not (is_passing and self.is_safe and self._tries < self.retries):
            raise error
        most = min(CAP_SECONDS, BASE_SECONDS * 2.0**self._tries)
        self._tries += 1
        pause = max(self.draw(0.0, most), error.retry_after or 0.0)
        if self.clock() + pause >= self._deadline:
            raise error
        return pause

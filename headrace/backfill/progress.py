"""How far a backfill is: rows, rows per second and the time left."""

from __future__ import annotations

import time

from headrace.backfill.plan import Chunk
from headrace.console import Bar

LINE_SECONDS = 10.0
"""Time between two lines where the output is not a terminal."""


class Progress:
    """Counts rows, and shows them in a bar or, without a terminal, in lines."""

    def __init__(self, total: int, bar: Bar) -> None:
        self.total, self._bar = total, bar
        self.done = 0
        self._began = self._shown = time.monotonic()
        self._before = 0
        """Rows of earlier runs."""

    def add(self, chunk: Chunk) -> None:
        """Counts a chunk that is done."""
        self.done += chunk.rows
        now = time.monotonic()
        if now - self._began < 0.5 and self._before + chunk.rows == self.done:  # known at once: of an earlier run
            self._before = self.done
        self._bar.update(self.done)
        if self._bar.is_visible or now - self._shown >= LINE_SECONDS:
            self._shown = now
            self._bar.set_description(self.describe(now))

    def describe(self, now: float) -> str:
        """Returns the rows that are done, the rate of this run, and the time that is left."""
        rate = (self.done - self._before) / max(now - self._began, 1e-6)
        text = f"{self.done:,} of {self.total:,} rows"
        if rate <= 0:
            return text
        return f"{text}, {rate:,.0f} rows/s, {_duration((self.total - self.done) / rate)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

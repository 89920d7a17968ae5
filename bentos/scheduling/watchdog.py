"""Ends a replica that hangs, so that its supervisor restarts it. From outside, a hung model looks like a slow one."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

logger = logging.getLogger("headrace.watchdog")
STUCK_SECONDS = float(os.environ.get("HEADRACE_STUCK_SECONDS", 30.0))
DRAIN_SECONDS = 2.0
"""Time from the failing readiness check to the exit, in which the load balancer removes the replica and requests finish."""
EXIT_CODE = 70
"""EX_SOFTWARE in sysexits.h."""


class Watchdog:
    """Watches an event loop, and work that has made no progress for `silent_seconds()`."""

    def __init__(
        self,
        silent_seconds: Callable[[], float],
        stuck_seconds: float | None = None,
        failure: Callable[[], str] = lambda: "",
    ) -> None:
        """
        Args:
            failure: why the model cannot answer any more; empty while it can.
        """
        self.is_stuck = False
        self._silent_seconds, self._failure = silent_seconds, failure
        self._limit = STUCK_SECONDS if stuck_seconds is None else stuck_seconds
        self._last_pulse = time.monotonic()
        self._interval = min(1.0, self._limit / 4)

    def start(self) -> None:
        """Starts watching the running event loop; called once."""
        self._pulse(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _pulse(self, loop: asyncio.AbstractEventLoop) -> None:
        self._last_pulse = time.monotonic()
        loop.call_later(self._interval, self._pulse, loop)

    def _watch(self) -> None:
        while True:
            time.sleep(self._interval)
            reason = self._stuck_reason()
            if reason:
                self.is_stuck = True
                logger.critical("%s; this process exits in %g s", reason, DRAIN_SECONDS)
                if not self._failure():  # the stack shows what hangs, not why another process ended
                    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
                time.sleep(DRAIN_SECONDS)
                os._exit(EXIT_CODE)

    def _stuck_reason(self) -> str:
        loop = time.monotonic() - self._last_pulse
        if loop > self._limit + self._interval:
            return f"the event loop has not run for {loop:.1f} s"
        if (silent := self._silent_seconds()) > self._limit:
            return f"the model has made no progress for {silent:.1f} s"
        return self._failure()

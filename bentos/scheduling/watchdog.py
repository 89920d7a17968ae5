"""Ends a replica that hangs, so that its supervisor starts it anew: nobody else can tell a hung model from a slow one."""

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
LAST_SECONDS = 2.0
"""Between not being ready any more and the end: the balancer takes the replica out, other requests are answered."""
EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h."""


class Watchdog:
    """Watches the event loop it is started from, and work whose `silent_seconds` say for how long it made no progress."""

    def __init__(self, silent_seconds: Callable[[], float], stuck_seconds: float | None = None) -> None:
        self.is_stuck = False
        self._silent_seconds = silent_seconds
        self._bound = STUCK_SECONDS if stuck_seconds is None else stuck_seconds
        self._beat = time.monotonic()
        self._interval = min(1.0, self._bound / 4)

    def start(self) -> None:
        """Called from the event loop, once."""
        self._pulse(asyncio.get_running_loop())
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _pulse(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()
        loop.call_later(self._interval, self._pulse, loop)

    def _watch(self) -> None:
        while True:
            time.sleep(self._interval)
            what = self._stuck()
            if what:
                self.is_stuck = True
                logger.critical("%s; this process ends in %g s", what, LAST_SECONDS)
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
                time.sleep(LAST_SECONDS)
                os._exit(EXIT_CODE)

    def _stuck(self) -> str:
        loop = time.monotonic() - self._beat
        if loop > self._bound + self._interval:
            return f"the event loop has not turned for {loop:.1f} s"
        if (silent := self._silent_seconds()) > self._bound:
            return f"the model has made no progress for {silent:.1f} s"
        return ""

"""Progress of a long benchmark on the terminal, and its end by a signal."""

from __future__ import annotations

import signal
import sys
import time


def report(line: str) -> None:
    """Prints a line of progress."""
    print(f"  {time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def interrupt_on_sigterm() -> None:
    """Ends the benchmark on SIGTERM as on Ctrl-C: everything that it has started is stopped."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

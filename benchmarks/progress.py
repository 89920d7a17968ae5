"""Progress of a long benchmark on the terminal, and its end by a signal."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

from headrace.errors import HeadraceError


def report(line: str) -> None:
    """Prints a line of progress."""
    print(f"  {time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def exit_code_of(run: Callable[[], int]) -> int:
    """Runs a benchmark that has a temporary clone; returns its exit code.

    SIGTERM ends it as Ctrl-C does (130), so that everything it has started is stopped. An error is printed, and has its own
    code.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run()
    except KeyboardInterrupt:
        report("interrupted; all processes are stopped and the clone is removed")
        return 130
    except HeadraceError as error:
        report(f"error {error}")
        return error.exit_code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt

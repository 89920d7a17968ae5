"""How long work in a thread says that it goes on, and learns that nobody waits for it any more."""

from __future__ import annotations

import threading
import time

_here = threading.local()


class Over(Exception):
    """Nobody waits for this work any more."""


class Beat:
    """Of one job: when it last made progress, and whether it is over."""

    __slots__ = ("at", "is_over")

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.is_over = False


def watch(beat: Beat | None) -> None:
    """What `made` tells in this thread from now on."""
    _here.beat = beat


def made() -> None:
    """Called by work between its parts.

    Raises:
        Over: the request was given up; the rest of the work is left.
    """
    beat: Beat | None = getattr(_here, "beat", None)
    if beat is not None:
        beat.at = time.monotonic()
        if beat.is_over:
            raise Over

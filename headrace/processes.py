"""How Python itself behaves in short-lived processes that import heavy libraries."""

from __future__ import annotations

import gc


def raise_gc_threshold() -> None:
    """Lets imports run without a garbage collection every few hundred objects, none of which would find anything."""
    gc.set_threshold(200_000, 20, 100)


def leave() -> None:
    """Takes what is left out of the collector's sight: walking a million objects once more at exit costs a second."""
    gc.freeze()

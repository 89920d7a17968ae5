"""Helpers for short-lived processes: garbage collection, the end of the parent process, errors passed to the caller."""

from __future__ import annotations

import gc
import os
import threading
import time

from headrace.errors import DiskFull, HeadraceError
from headrace.files import is_disk_full

PARENT_PID = "HEADRACE_PARENT_PID"
"""Environment variable with the id of the process that `die_with_parent` watches."""
PARENT_POLL_SECONDS = 0.2


def raise_gc_threshold() -> None:
    """Lets imports run without a garbage collection every few hundred objects, none of which would find anything."""
    gc.set_threshold(200_000, 20, 100)


def freeze_gc() -> None:
    """Hides all living objects from the garbage collector: walking a million objects once more at exit costs a second."""
    gc.freeze()


def die_with_parent(pid: int | None = None) -> None:
    """Ends this process soon after its parent has ended, however that happened.

    Args:
        pid: the parent's process id; by default the one in `HEADRACE_PARENT_PID`. Without either, nothing is watched.
    """
    parent = pid if pid is not None else int(os.environ.get(PARENT_PID) or 0)
    if parent:
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(pid: int) -> None:
    """A dead parent is gone, or a zombie until it is reaped; another process may have its id by then."""
    import psutil

    try:
        parent = psutil.Process(pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            time.sleep(PARENT_POLL_SECONDS)
    except psutil.Error:
        pass
    os._exit(1)


def as_headrace_error(error: Exception) -> HeadraceError | None:
    """Maps an exception to an error that the user can act on; None for a bug."""
    if isinstance(error, HeadraceError):
        return error
    if isinstance(error, MemoryError):
        return HeadraceError("out of memory", hint="lower train.batch_size, or use a machine with more memory")
    if is_disk_full(error):
        where = getattr(error, "filename", None)
        return DiskFull("no space left", where=where, hint="free some space, then run the same command")
    return None

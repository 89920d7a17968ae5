"""Progress of a job in the prediction thread, by which hanging jobs are found and abandoned ones end."""

from __future__ import annotations

import threading
import time

_thread = threading.local()


class JobCancelled(Exception):
    """The request of this job was abandoned."""


class JobProgress:
    """When a job last made progress, and whether it was cancelled."""

    __slots__ = ("is_cancelled", "reported_at")

    def __init__(self) -> None:
        self.reported_at = time.monotonic()
        self.is_cancelled = False


def track(job: JobProgress | None) -> None:
    """Makes `report` in this thread update `job` from now on."""
    _thread.job = job


def report() -> None:
    """Reports progress between two parts of a job.

    Raises:
        JobCancelled: the request was abandoned, so that the rest of the work is skipped.
    """
    job: JobProgress | None = getattr(_thread, "job", None)
    if job is not None:
        job.reported_at = time.monotonic()
        if job.is_cancelled:
            raise JobCancelled

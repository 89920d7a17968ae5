"""Old flow runs in Prefect: those of releases that ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from headrace.console import Report
from headrace.errors import ServiceError
from headrace.project import Project
from headrace.release.prune import Removed
from headrace.services import prefect

PAGE = 200
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def remove_old_runs(project: Project, report: Report, keep: int, dry_run: bool = False) -> list[Removed]:
    """Removes the ended flow runs except the newest `keep` of each name, and returns them; with `dry_run` it only returns them.

    When Prefect's server does not answer, that is reported, and the runs stay.
    """
    try:
        old = list(_old_runs(project, keep))
        for run in [] if dry_run else old:
            prefect.call(project, "DELETE", f"flow_runs/{run['id']}")
    except ServiceError:
        report("the Prefect server does not answer: its flow runs stay (headrace up starts it)")
        return []
    return [Removed("flow run", f"{run['name']} {run['start_time'] or run['created']}", 0) for run in old]


def _old_runs(project: Project, keep: int) -> Iterator[dict[str, Any]]:
    seen: Counter[str] = Counter()
    for run in _ended(project):
        seen[run["name"]] += 1
        if seen[run["name"]] > keep:
            yield run


def _ended(project: Project) -> Iterator[dict[str, Any]]:
    """Ended runs of all flows, newest first."""
    offset = 0
    while True:
        query = {"flow_runs": {"state": {"type": {"any_": ENDED}}}, "sort": "START_TIME_DESC", "limit": PAGE, "offset": offset}
        page = prefect.call(project, "POST", "flow_runs/filter", query)
        yield from page
        if len(page) < PAGE:
            return
        offset += PAGE

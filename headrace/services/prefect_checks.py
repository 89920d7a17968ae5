"""Whether Prefect does what it is there for: the scheduler schedules, the worker polls. An answer alone does not show it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.services import prefect
from headrace.services.authentication import STARTED
from headrace.serving.replicas import supervisor

SCHEDULER_SECONDS = 240.0
"""The scheduler looks at all deployments every minute."""
POLL_SECONDS = 120.0
"""The worker asks for runs every ten seconds, on a busy machine later."""
LOG_BYTES = 4_000_000
ERROR_LINE = re.compile(r"^\S+ \| (?:ERROR|CRITICAL) +\| (.*)")
RAISED = re.compile(r"^[\w.]*(?:Error|Exception|Warning|Timeout)\b.*")
LOCKED = "database is locked"
OFTEN_LOCKED = 5
EVERY_MONTH = re.compile(r"^\S+ \S+ \S+ \* \S+$")
LONGEST_INTERVAL = 30 * 24 * 3600.0


def server_problem(project: Project) -> str | None:
    """Returns why schedules do not run, with the last error of the server's log; None when they do, or when there are none.

    Deployments that have just been changed, and a server that has just started, have time to be scheduled.
    """
    program = supervisor.states(project).get(prefect.SERVER)
    if program is None or time.time() - program.started_at < SCHEDULER_SECONDS:
        return None
    try:
        waiting = unscheduled(project, SCHEDULER_SECONDS)
    except ServiceError as error:
        return error.message
    if not waiting:
        return None
    last = last_error(supervisor.log_path(project, prefect.SERVER))
    because = f"; the last error in its log: {last}" if last else ""
    return f"no run is scheduled for {', '.join(waiting)}, whose schedules are active{because}"


def unscheduled(project: Project, settle_seconds: float) -> list[str]:
    """Names of deployments with an active schedule that have no run waiting for its time.

    Args:
        settle_seconds: deployments changed within this time are left out.
    """
    deployments = prefect.call(project, "POST", "deployments/filter", {"limit": 200})
    expected = [one for one in deployments if _should_be_scheduled(one) and _age(one["updated"]) > settle_seconds]
    return [one["name"] for one in expected if not _has_scheduled_run(project, one["id"])]


def worker_problem(project: Project) -> str | None:
    """Returns that the worker does not ask for runs; None when it does, or has just started."""
    program = supervisor.states(project).get(prefect.WORKER)
    if program is None or time.time() - program.started_at < POLL_SECONDS:
        return None
    return poll_problem(project)


def poll_problem(project: Project) -> str | None:
    """Returns since when no worker has asked for runs; None when one has, recently."""
    try:
        queues = prefect.call(project, "POST", f"work_pools/{prefect.WORK_POOL}/queues/filter", {})
    except ServiceError as error:
        return error.message
    ages = [_age(queue["last_polled"]) for queue in queues if queue["last_polled"]]
    if ages and min(ages) < POLL_SECONDS:
        return None
    return f"it has not asked for runs for {min(ages):.0f} s" if ages else "it has never asked for runs"


def server_errors(path: Path) -> str | None:
    """Returns how many errors the server has logged since its start, with the last one; None when there are none.

    Its services meet a locked database now and then, and repeat their work: that counts only when it happens often.
    """
    found = _errors(path)
    if sum(LOCKED in error for error in found) < OFTEN_LOCKED:
        found = [error for error in found if LOCKED not in error]
    return f"{len(found)} error(s) in its log since its start; the last: {found[-1]}" if found else None


def last_error(path: Path) -> str | None:
    """Returns the last error that the server has logged since its start."""
    found = _errors(path)
    return found[-1] if found else None


def _errors(path: Path) -> list[str]:
    """The last line of each error in the log since the server's last start, without its traceback."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - LOG_BYTES))
            lines = handle.read().decode(errors="replace").rpartition(STARTED)[2].splitlines()
    except FileNotFoundError:
        return []
    found: list[str] = []
    for line in lines:
        if logged := ERROR_LINE.match(line):
            found.append(logged[1][:300])
        elif RAISED.match(line):  # the end of a traceback says more than the line before it
            found[-1:] = [line[:300]]
    return found


def _should_be_scheduled(deployment: dict[str, Any]) -> bool:
    """Whether it has an active schedule that is due often enough: the scheduler looks 100 days ahead."""

    def is_frequent(schedule: dict[str, Any]) -> bool:
        interval = schedule.get("interval")
        return EVERY_MONTH.match(schedule.get("cron") or "") is not None or (interval or LONGEST_INTERVAL) < LONGEST_INTERVAL

    return not deployment["paused"] and any(one["active"] and is_frequent(one["schedule"]) for one in deployment["schedules"])


def _has_scheduled_run(project: Project, deployment_id: str) -> bool:
    late = datetime.fromtimestamp(time.time() - POLL_SECONDS, UTC).isoformat()
    body = {
        "deployments": {"id": {"any_": [deployment_id]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": late}},
    }
    return bool(prefect.call(project, "POST", "flow_runs/count", body))


def _age(when: str) -> float:
    return time.time() - datetime.fromisoformat(when).timestamp()

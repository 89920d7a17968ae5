"""Runs that ended without a word: their process was killed, or Prefect's worker or the machine died. Watchdog and deliveries
find them; each is published once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from headrace.event_names import EventName
from headrace.events import outbox
from headrace.events.publish import publish
from headrace.events.running import Run, dead_runs, forget, model_of
from headrace.project import Project
from headrace.services import prefect_api

KILLED = "its process was killed, or the machine stopped"
SILENT = ("CANCELLING", "CANCELLED", "PAUSED")
"""A person has ended the run, or it waits for one."""
OPEN = ("RUNNING", "PENDING", "CANCELLING", "SCHEDULED")
ENDED: dict[str, EventName] = {"FAILED": "failed", "CRASHED": "crashed"}
LIMIT = 50
CURSOR = "ended runs"


def publish_dead_runs(project: Project) -> list[Run]:
    """Publishes the runs that were killed, except those that a person has cancelled or that wait for one, closes them in
    Prefect, and returns those that are closed now. A run whose code had ended is closed as it ended."""
    closed = []
    for run in dead_runs(project):
        state = _state(run, project)
        if state not in SILENT and not run.end:
            data = {"run": run.flow, "flow_run": run.id, "pid": run.pid, "reason": KILLED}
            if not publish(project, "crashed", run.model, data, key=run.key):
                continue
        if state is None or not _close_parts(run.id, project):
            continue
        if state not in OPEN or _close(run.id, state, project, run.end):
            forget(run, project)
            closed.append(run)
    return closed


def publish_new_ended_runs(project: Project) -> None:
    """`publish_ended_runs` from where the last call ended, also before a restart."""
    with outbox.opened(project) as connection:
        since = outbox.read_meta(connection, CURSOR)
    later = publish_ended_runs(project, since)
    if later != since:
        with outbox.opened(project) as connection:
            outbox.write_meta(connection, CURSOR, later)


def publish_ended_runs(project: Project, since: str | None) -> str:
    """Publishes the runs that Prefect has as failed or crashed and that have not said so themselves: their code could not be
    loaded, the recipe could not be read, or the worker found them dead.

    Args:
        since: a time in ISO 8601 from which runs count.

    Returns:
        The time for the next call: that of the newest run found, by the server's clock.
    """
    since = since or datetime.now(UTC).isoformat()
    query = {
        "flow_runs": {
            "state": {"type": {"any_": list(ENDED)}},
            "end_time": {"after_": since},
            "parent_task_run_id": {"is_null_": True},
        },
        "sort": "END_TIME_DESC",
        "limit": LIMIT,
    }
    answer = prefect_api.call(project, "/flow_runs/filter", "POST", query)
    if answer is None or answer.status != 200:
        return since
    runs: list[dict[str, Any]] = answer.json()
    for run in reversed(runs):
        _publish_ended(run, project)
    return max([since, *(str(run["end_time"]) for run in runs if run.get("end_time"))])


def _publish_ended(run: dict[str, Any], project: Project) -> None:
    data = {"run": run["name"], "flow_run": run["id"], "reason": (run.get("state") or {}).get("message") or ""}
    found = Run(run["id"], run["name"], model_of(run.get("parameters")))
    publish(project, ENDED[run["state_type"]], found.model, data, key=found.key)


def _state(run: Run, project: Project) -> str | None:
    """Type of the run's state in Prefect; `DELETED` for one that it does not know, None while it does not answer."""
    answer = prefect_api.call(project, f"/flow_runs/{run.id}")
    if answer is None or answer.status not in (200, 404):
        return None
    return "DELETED" if answer.status == 404 else str(answer.json().get("state_type"))


def _close_parts(run_id: str, project: Project) -> bool:
    """Closes the runs of flows that a dead run has called, and so on; returns whether all are closed. A worker closes only the
    run itself."""
    query = {"flow_runs": {"parent_flow_run_id": {"any_": [run_id]}}}
    answer = prefect_api.call(project, "/flow_runs/filter", "POST", query)
    if answer is None or answer.status != 200:
        return False
    parts: list[dict[str, Any]] = answer.json()
    return all(
        _close_parts(one["id"], project) and (one["state_type"] not in OPEN or _close(one["id"], one["state_type"], project))
        for one in parts
    )


def _close(run_id: str, state: str, project: Project, end: str = "") -> bool:
    """Gives a run in Prefect the state in which it ended; returns whether Prefect has accepted it."""
    ended = end or ("CANCELLED" if state == "CANCELLING" else "CRASHED")
    message = f"it had ended before {KILLED}" if end else KILLED
    body = {"state": {"type": ended, "name": ended.capitalize(), "message": message}, "force": True}
    answer = prefect_api.call(project, f"/flow_runs/{run_id}/set_state", "POST", body)
    return answer is not None and answer.status < 300

"""Splits the seconds of one release by step, from Prefect's records of its tasks and the observed processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from benchmarks.release_clone import Clone, CompletedCommand
from benchmarks.release_processes import ProcessMonitor
from headrace.errors import ServiceError
from headrace.services import prefect

STAGES = ("validate", "prepare", "train", "export", "evaluate")
"""Tasks whose work is done by a process `python -m headrace.pipeline.stages`, which DVC starts."""
FUNCTIONS = (
    "recover",
    "ingest",
    "register",
    "judge",
    "keep production serving",
    "ask for approval",
    "package",
    "roll out",
    "promote",
    "record",
)
"""Tasks whose work is a function in the flow's process."""
IMPORTS = ("bring model", "import model")
"""Tasks of models that others trained; the releases that are measured train theirs."""
RECORD_SECONDS = 30.0
"""Longest wait for Prefect's records of tasks, which it writes a moment after they end."""


@dataclass
class Step:
    """One task of the flow, in seconds: `own` is its work, the rest of `total` is the overhead of DVC."""

    name: str
    total: float
    own: float


@dataclass
class Breakdown:
    """One release, in seconds: `own` and the parts of `overhead` add up to `total`."""

    total: float
    steps: list[Step]
    overhead: dict[str, float]

    @property
    def own(self) -> float:
        return sum(step.own for step in self.steps)

    @property
    def orchestration(self) -> float:
        return self.total - self.own

    def to_dict(self) -> dict[str, Any]:
        return {
            "total": round(self.total, 2),
            "own_work": round(self.own, 2),
            "orchestration": round(self.orchestration, 2),
            "orchestration_parts": {name: round(seconds, 2) for name, seconds in self.overhead.items()},
            "steps": {s.name: {"total": round(s.total, 2), "own_work": round(s.own, 2)} for s in self.steps},
        }


def breakdown(recipe: str, ran: CompletedCommand, monitor: ProcessMonitor, clone: Clone) -> Breakdown:
    """Returns the breakdown of the release that the command `ran` made and `monitor` sampled.

    Raises:
        ServiceError: Prefect has no complete record of the release.
    """
    tasks = _tasks(recipe, ran, clone)
    steps, dvc, rest = [], 0.0, 0.0
    for name, began_at, ended_at in tasks:
        total = ended_at - began_at
        if name in STAGES:
            own = min(total, stage_seconds(monitor, name, began_at))
            dvc += total - own
        elif name in FUNCTIONS:
            own = total
        else:  # tasks that Prefect adds
            own, rest = 0.0, rest + total
        steps.append(Step(name, total, own))
    first, last = tasks[0][1], tasks[-1][2]
    flow_at = _flow_start(monitor, ran)
    overhead = {
        "services start": flow_at - ran.started_at,
        "flow starts (imports of Prefect and the tasks)": first - flow_at,
        "DVC around the stages": dvc,
        "Prefect between the steps": last - first - sum(step.total for step in steps) + rest,
        "flow ends": ran.ended_at - last,
    }
    return Breakdown(ran.ended_at - ran.started_at, steps, overhead)


def stage_seconds(monitor: ProcessMonitor, stage: str, after: float) -> float:
    """Returns the lifetime of a stage's process, including interpreter start and imports; 0 if DVC skipped the stage."""
    lives = [seen.seconds for seen in monitor.seen.values() if seen.name == f"stage {stage}" and seen.began_at >= after]
    return max(lives, default=0.0)


def _flow_start(monitor: ProcessMonitor, ran: CompletedCommand) -> float:
    """Returns when the command, after starting the services, replaced itself by the flow (by exec, in the same process)."""
    seen = monitor.seen.get(ran.pid)
    turned = [at for at, command in seen.commands if "flows" in command] if seen else []
    if not turned:
        raise ServiceError("the release did not start its flow", where="headrace run", hint="run it manually to see why")
    return turned[0]


def _tasks(recipe: str, ran: CompletedCommand, clone: Clone) -> list[tuple[str, float, float]]:
    """Returns name, start and end (seconds since the epoch) of each task, in order."""
    project, deadline = clone.project.using(clone.settings), time.monotonic() + RECORD_SECONDS
    while True:
        newest = {"sort": "START_TIME_DESC", "limit": 1, "flow_runs": {"name": {"any_": [recipe]}}}
        flows = prefect.call(project, "POST", "flow_runs/filter", newest)
        if flows and _seconds(flows[0]["start_time"]) >= ran.started_at:
            wanted = {"flow_runs": {"id": {"any_": [flows[0]["id"]]}}}
            runs = prefect.call(project, "POST", "task_runs/filter", wanted)
            if "record" in {_name(run) for run in runs} and all(run["end_time"] for run in runs):
                found = [(_name(run), _seconds(run["start_time"]), _seconds(run["end_time"])) for run in runs]
                return sorted(found, key=lambda task: task[1])
        if time.monotonic() > deadline:
            raise ServiceError("Prefect has no complete record of the release", hint="headrace logs prefect-server")
        time.sleep(0.2)


def _name(run: dict[str, Any]) -> str:
    return str(run["name"]).rpartition("-")[0]


def _seconds(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0

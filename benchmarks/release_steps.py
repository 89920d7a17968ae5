"""Where the seconds of one release went: Prefect's own records of its tasks, held against the processes that were seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from benchmarks.release_clone import Clone, Ran
from benchmarks.release_processes import Watch
from headrace.errors import ServiceError

STAGES = ("validate", "prepare", "train", "export", "evaluate")
"""Tasks whose work is done by a process `python -m headrace.pipeline.stages`, started by DVC."""
FUNCTIONS = ("ingest", "register", "judge", "package", "roll out", "promote", "record")
"""Tasks whose work is a plain function, in the flow's process."""
RECORD_SECONDS = 30.0
"""Prefect writes its records of tasks a moment after they end."""


@dataclass
class Step:
    """One task of the flow. Times in seconds; `own` is its work, the rest of `whole` is what DVC and Prefect add."""

    name: str
    whole: float
    own: float


@dataclass
class Breakdown:
    """One release. `own` and the parts of `overhead` add up to `whole`."""

    whole: float
    steps: list[Step]
    overhead: dict[str, float]

    @property
    def own(self) -> float:
        return sum(step.own for step in self.steps)

    @property
    def orchestration(self) -> float:
        return self.whole - self.own

    def to_dict(self) -> dict[str, Any]:
        return {
            "whole": round(self.whole, 2),
            "own_work": round(self.own, 2),
            "orchestration": round(self.orchestration, 2),
            "orchestration_parts": {name: round(seconds, 2) for name, seconds in self.overhead.items()},
            "steps": {s.name: {"whole": round(s.whole, 2), "own_work": round(s.own, 2)} for s in self.steps},
        }


def breakdown(recipe: str, ran: Ran, watch: Watch, made: Clone) -> Breakdown:
    """Of the release that `ran` was, seen by `watch`.

    Raises:
        ServiceError: Prefect has no record of it.
    """
    tasks = _tasks(recipe, ran, made)
    steps, dvc, rest = [], 0.0, 0.0
    for name, began_at, ended_at in tasks:
        whole = ended_at - began_at
        if name in STAGES:
            own = min(whole, stage_seconds(watch, name, began_at))
            dvc += whole - own
        elif name in FUNCTIONS:
            own = whole
        else:  # Prefect looking after its own records
            own, rest = 0.0, rest + whole
        steps.append(Step(name, whole, own))
    first, last = tasks[0][1], tasks[-1][2]
    flow_at = _became_flow(watch, ran)
    overhead = {
        "services start": flow_at - ran.started_at,
        "flow starts (imports of Prefect and the tasks)": first - flow_at,
        "DVC around the stages": dvc,
        "Prefect between the steps": last - first - sum(step.whole for step in steps) + rest,
        "flow ends": ran.ended_at - last,
    }
    return Breakdown(ran.ended_at - ran.started_at, steps, overhead)


def stage_seconds(watch: Watch, stage: str, after: float) -> float:
    """How long the process of a stage lived, interpreter start and imports included; 0 when DVC skipped the stage."""
    lives = [seen.seconds for seen in watch.seen.values() if seen.name == f"stage {stage}" and seen.began_at >= after]
    return max(lives, default=0.0)


def _became_flow(watch: Watch, ran: Ran) -> float:
    """When the command, its services ready, turned into the flow (by exec: the process is the same)."""
    seen = watch.seen.get(ran.pid)
    turned = [at for at, command in seen.commands if "flows" in command] if seen else []
    if not turned:
        raise ServiceError("the release never became a flow", where="headrace run", hint="run it by hand to see why")
    return turned[0]


def _tasks(recipe: str, ran: Ran, made: Clone) -> list[tuple[str, float, float]]:
    """Name, begin and end (seconds since the epoch) of each task, in order."""
    api = f"{made.settings.prefect_address}/api"
    deadline = time.monotonic() + RECORD_SECONDS
    while True:
        newest = {"sort": "START_TIME_DESC", "limit": 1, "flow_runs": {"name": {"any_": [recipe]}}}
        flows = _post(f"{api}/flow_runs/filter", newest)
        if flows and _seconds(flows[0]["start_time"]) >= ran.started_at:
            wanted = {"flow_runs": {"id": {"any_": [flows[0]["id"]]}}}
            runs = _post(f"{api}/task_runs/filter", wanted)
            if "record" in {_name(run) for run in runs} and all(run["end_time"] for run in runs):
                found = [(_name(run), _seconds(run["start_time"]), _seconds(run["end_time"])) for run in runs]
                return sorted(found, key=lambda task: task[1])
        if time.monotonic() > deadline:
            raise ServiceError("Prefect has no whole record of the release", where=api, hint="headrace logs prefect-server")
        time.sleep(0.2)


def _name(run: dict[str, Any]) -> str:
    return str(run["name"]).rpartition("-")[0]


def _post(address: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(address, json=body, timeout=20)
    answer.raise_for_status()
    return answer.json()


def _seconds(moment: str | None) -> float:
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0

"""What is measured of a release and of the services, each by a function that gives plain values."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from benchmarks.release_clone import TINY, Clone, Ran
from benchmarks.release_processes import Watch, memory_of, tree
from benchmarks.release_steps import breakdown
from headrace.errors import HeadraceError
from headrace.services import status, up
from headrace.serving.replicas import supervisor

Values = dict[str, Any]
Tell = Callable[[str], None]
SETTLE_SECONDS = 3.0
"""Servers go on allocating for a moment after they answer."""
TINY_RECIPE: Values = {
    "name": "tiny",
    "task": "classification",
    "data": {"source": "tiny.csv", "target": "kind", "split": {"test": 0.3, "validation": 0.2}},
    "expect": [{"type": "expect_column_values_to_be_between", "column": "length", "min_value": 0, "max_value": 100}],
    "model": {"name": "mlp", "hidden": [16]},
    "train": {"epochs": 3, "batch_size": 32, "learning_rate": 0.02},
    "gate": {"require": {"accuracy": ">= 0.5"}},
    "serve": {"replicas": 2},
}


def spread(seconds: list[float]) -> Values:
    """Median and range."""
    found = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {**{name: round(value, 3) for name, value in found.items()}, "n": len(seconds)}


def write_tiny(made: Clone) -> str:
    """A recipe of a few rows in the clone, and its name."""
    rows = [f"{(i * 37) % 100},{(i * 61) % 83},{'long' if (i * 37) % 100 > 50 else 'short'}" for i in range(400)]
    (made.root / TINY[1]).write_text("length,width,kind\n" + "\n".join(rows) + "\n")
    (made.root / TINY[0]).write_text(yaml.safe_dump(TINY_RECIPE, sort_keys=False))
    return "tiny"


def start_services(made: Clone, runs: int, tell: Tell) -> Values:
    """From nothing (no supervisord, no databases) and again with databases that are there; then the memory of each."""
    found: Values = {}
    for name, count in (("with new databases", runs), ("again", runs)):
        times: list[dict[str, float]] = []
        for _ in range(count):
            if name == "with new databases":
                made.forget(keep_sources=True)
            else:
                made.headrace("down")
            times.append(_readiness(made))
            tell(f"services {name}: {times[-1]['all']:.1f} s")
        found[name] = {service: spread([one[service] for one in times]) for service in times[0]}
    time.sleep(SETTLE_SECONDS)
    programs = supervisor.states(made.project)
    found["memory"] = {name: memory_of(tree(programs[name].pid or 0)).to_dict() for name in up.NAMES}
    made.headrace("down")
    return found


def _readiness(made: Clone) -> dict[str, float]:
    """Seconds until `headrace up` ended (`all`), and until each service first answered."""
    first: dict[str, float] = {}
    stopped = threading.Event()
    start = time.perf_counter()

    def poll() -> None:
        while not stopped.wait(0.1):
            for service in status.status(made.project, made.settings)["services"]:
                if service["state"] == "ready":
                    first.setdefault(service["name"], time.perf_counter() - start)

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        ran = made.headrace("up")
    finally:
        stopped.set()
        poller.join()
    return {**{name: first.get(name, ran.seconds) for name in up.NAMES}, "all": ran.seconds}


def first_release(recipe: str, made: Clone, keep_sources: bool, runs: int, tell: Tell) -> Values:
    """From a clone with nothing in it and no service up to two replicas that answer."""
    releases = []
    for _ in range(runs):
        made.forget(keep_sources)
        releases.append(_watched(recipe, made))
        last = releases[-1]
        tell(
            f"first release{'' if keep_sources else ', source not here yet'}: {last['whole']:.1f} s, "
            f"of it {last['orchestration']:.1f} s orchestration"
        )
    return _of_runs(releases)


def forced(recipe: str, made: Clone, runs: int, tell: Tell) -> Values:
    """Every step asked for, none with anything to do."""
    releases = []
    for _ in range(runs):
        releases.append(_watched(recipe, made, "--force"))
        tell(f"full path, nothing changed: {releases[-1]['whole']:.2f} s")
    return _of_runs(releases)


def _watched(recipe: str, made: Clone, *options: str) -> Values:
    with Watch(made.token) as watch:
        ran = made.headrace("run", recipe, "--json", *options)
    facts = json.loads(ran.stdout)
    if not facts.get("version"):
        raise HeadraceError(f"the release gave no version: {ran.stdout[-500:]}", where=recipe, hint=f"headrace run {recipe}")
    return {
        **breakdown(recipe, ran, watch, made).to_dict(),
        "peak": watch.peak.to_dict(),
        "at_peak": watch.at_peak,
        "others_cpu": round(watch.others, 3),
    }


def _of_runs(releases: list[Values]) -> Values:
    """The spread over all runs, and the run in the middle in full."""
    middle = sorted(releases, key=lambda one: float(one["whole"]))[(len(releases) - 1) // 2]
    return {
        "seconds": spread([one["whole"] for one in releases]),
        "orchestration": spread([one["orchestration"] for one in releases]),
        "middle_run": middle,
    }


def unchanged(recipe: str, made: Clone, runs: int, tell: Tell) -> Values:
    """`headrace run` with nothing changed and its peers, in turns, so that each meets the same machine.

    Raises:
        HeadraceError: something was not skipped: then it would not be the case that is measured.
    """
    bin_folder = Path(sys.executable).parent
    peers: dict[str, tuple[list[str], str]] = {
        "headrace run": ([str(bin_folder / "headrace"), "run", recipe, "--json"], '"unchanged": true'),
        "dvc repro": ([str(bin_folder / "dvc"), "repro", f"evaluate@{recipe}"], "up to date"),
        "python": ([sys.executable, "-c", "pass"], ""),
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(runs + 1):
        for name, (command, says) in peers.items():
            ran: Ran = made.run(*command)
            if says not in ran.stdout:
                raise HeadraceError(f"{name} had something to do:\n{ran.stdout[-800:]}", where=recipe, hint="run it again")
            if turn:  # the first turn warms the disk's cache
                seconds[name].append(ran.seconds)
    found = {name: spread(times) for name, times in seconds.items()}
    tell(", ".join(f"{name} {values['median']:.2f} s" for name, values in found.items()))
    ours, dvc, python = (found[name]["median"] for name in peers)
    return {**found, "ratio_to_dvc": round(ours / dvc, 2), "ratio_to_python": round(ours / python, 1)}

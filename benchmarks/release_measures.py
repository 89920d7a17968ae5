"""Measures releases and services; each function returns values that can be written as JSON."""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.release_clone import TINY, Clone, CompletedCommand
from benchmarks.release_processes import ProcessMonitor, memory_of, process_tree
from benchmarks.release_steps import breakdown
from headrace.console import Report
from headrace.errors import HeadraceError
from headrace.services import status, up
from headrace.serving.replicas import supervisor

Values = dict[str, Any]
SETTLE_SECONDS = 3.0
"""Servers keep allocating memory for a moment after they first answer."""
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
    """Returns the median, the range and the number of values."""
    found = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {**{name: round(value, 3) for name, value in found.items()}, "n": len(seconds)}


def write_tiny(clone: Clone) -> str:
    """Writes a recipe with 400 rows of data into the clone, and returns its name."""
    rows = [f"{(i * 37) % 100},{(i * 61) % 83},{'long' if (i * 37) % 100 > 50 else 'short'}" for i in range(400)]
    (clone.root / TINY[1]).write_text("length,width,kind\n" + "\n".join(rows) + "\n")
    (clone.root / TINY[0]).write_text(yaml.safe_dump(TINY_RECIPE, sort_keys=False))
    return "tiny"


def start_services(clone: Clone, runs: int, report: Report) -> Values:
    """Times the start of the services, without and with existing databases; then measures the memory of each."""
    found: Values = {}
    for name, count in (("with new databases", runs), ("again", runs)):
        times: list[dict[str, float]] = []
        for _ in range(count):
            if name == "with new databases":
                clone.reset(keep_sources=True)
            else:
                clone.headrace("down")
            times.append(_readiness(clone))
            report(f"services {name}: {times[-1]['all']:.1f} s")
        found[name] = {service: spread([one[service] for one in times]) for service in times[0]}
    time.sleep(SETTLE_SECONDS)
    programs = supervisor.states(clone.project)
    found["memory"] = {name: memory_of(process_tree(programs[name].pid or 0)).to_dict() for name in up.NAMES}
    clone.headrace("down")
    return found


def _readiness(clone: Clone) -> dict[str, float]:
    """Returns the seconds until `headrace up` ended (`all`), and until each service first answered."""
    first: dict[str, float] = {}
    stopped = threading.Event()
    start = time.perf_counter()

    def poll() -> None:
        while not stopped.wait(0.1):
            for service in status.status(clone.project.using(clone.settings))["services"]:
                if service["state"] == "ready":
                    first.setdefault(service["name"], time.perf_counter() - start)

    poller = threading.Thread(target=poll, daemon=True)
    poller.start()
    try:
        ran = clone.headrace("up")
    finally:
        stopped.set()
        poller.join()
    return {**{name: first.get(name, ran.seconds) for name in up.NAMES}, "all": ran.seconds}


def first_release(recipe: str, clone: Clone, keep_sources: bool, runs: int, report: Report) -> Values:
    """Times a release from a fresh clone without services until two replicas answer."""
    releases = []
    for _ in range(runs):
        clone.reset(keep_sources)
        releases.append(_release(recipe, clone))
        last = releases[-1]
        report(
            f"first release{'' if keep_sources else ', source not downloaded'}: {last['total']:.1f} s, "
            f"{last['orchestration']:.1f} s of it orchestration"
        )
    return _summarize(releases)


def forced(recipe: str, clone: Clone, runs: int, report: Report) -> Values:
    """Times releases with `--force` and nothing changed: every step runs, and none has anything to do."""
    releases = []
    for _ in range(runs):
        releases.append(_release(recipe, clone, "--force"))
        report(f"full path, nothing changed: {releases[-1]['total']:.2f} s")
    return _summarize(releases)


def _release(recipe: str, clone: Clone, *options: str) -> Values:
    with ProcessMonitor(clone.token) as monitor:
        ran = clone.headrace("run", recipe, "--json", *options)
    facts = json.loads(ran.stdout)
    if not facts.get("version"):
        raise HeadraceError(
            f"the release returned no version: {ran.stdout[-500:]}", where=recipe, hint=f"headrace run {recipe}"
        )
    return {
        **breakdown(recipe, ran, monitor, clone).to_dict(),
        "peak": monitor.peak.to_dict(),
        "at_peak": monitor.at_peak,
        "others_cpu": round(monitor.others, 3),
    }


def _summarize(releases: list[Values]) -> Values:
    """Returns the spread over all runs, and the run with the median time in full."""
    middle = sorted(releases, key=lambda one: float(one["total"]))[(len(releases) - 1) // 2]
    return {
        "seconds": spread([one["total"] for one in releases]),
        "orchestration": spread([one["orchestration"] for one in releases]),
        "middle_run": middle,
    }


def unchanged(recipe: str, clone: Clone, runs: int, report: Report) -> Values:
    """Times `headrace run` with nothing changed and its peers, in turns, so that all run under the same load.

    Raises:
        HeadraceError: something was not skipped, so this is not the case to measure.
    """
    bin_folder = Path(sys.executable).parent
    peers: dict[str, tuple[list[str], str]] = {
        "headrace run": ([str(bin_folder / "headrace"), "run", recipe, "--json"], '"unchanged": true'),
        "dvc repro": ([str(bin_folder / "dvc"), "repro", f"evaluate@{recipe}"], "up to date"),
        "python": ([sys.executable, "-c", "pass"], ""),
    }
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(runs + 1):
        for name, (command, expected) in peers.items():
            ran: CompletedCommand = clone.run(*command)
            if not turn:  # the first turn fills the disk cache; DVC also drops data sets from data.dvc that are not here
                continue
            if expected not in ran.stdout:
                raise HeadraceError(f"{name} had something to do:\n{ran.stdout[-800:]}", where=recipe, hint="run it again")
            seconds[name].append(ran.seconds)
    found = {name: spread(times) for name, times in seconds.items()}
    report(", ".join(f"{name} {values['median']:.2f} s" for name, values in found.items()))
    ours, dvc, python = (found[name]["median"] for name in peers)
    return {**found, "ratio_to_dvc": round(ours / dvc, 2), "ratio_to_python": round(ours / python, 1)}

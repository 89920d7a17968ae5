"""How the serving benchmark writes down what it measured."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median_low

from benchmarks.gate_report import hardware, section
from benchmarks.serving_load import Found, median_round
from benchmarks.serving_systems import System

VERSIONS = ("bentoml", "fastapi", "starlette", "uvicorn", "onnxruntime", "mlflow")
HEAD = """# Serving: one small CNN behind HTTP

Written by `python -m benchmarks.serving` in {minutes:.1f} minutes on {hardware}, {versions}. Load average {load[0]:.1f} at the
beginning, {load[1]:.1f} at the end. Load by wrk with one thread on the same machine, {seconds:g} s a measurement. All
servers were started and measured one after another, {rounds} times over: of each figure's rounds the median one counts.

All servers answer the same request, one image of 28 × 28 pixels, with the same small CNN (two convolutions, 10 classes, random
weights), in one process with one thread for the model. Headrace checks the token, holds the request against the contract,
meters it, records the answer and counts it for Prometheus, as it always does. *Binary* is the Open Inference Protocol with
binary tensors; *gateway* is through Envoy, which checks the token too. The floor checks nothing."""


@dataclass
class Measured:
    """One server, in all rounds."""

    system: System
    starts: list[float] = field(default_factory=list)
    """Seconds until it was ready."""
    found: list[Found] = field(default_factory=list)

    @property
    def start_seconds(self) -> float:
        return median_low(self.starts)

    def at(self, connections: int) -> Found | None:
        rounds = [one for one in self.found if one.connections == connections]
        return median_round(rounds) if rounds else None


def page(
    measured: dict[str, Measured],
    skipped: dict[str, str],
    minutes: float,
    load: tuple[float, float],
    seconds: float,
    rounds: int,
) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    head = HEAD.format(minutes=minutes, hardware=hardware(), versions=versions, load=load, seconds=seconds, rounds=rounds)
    title, written, *paragraphs = head.split("\n\n")
    head = "\n\n".join([title, textwrap.fill(" ".join(written.split()), 124), *paragraphs])
    parts = [head, aims(measured), *(table(measured, connections) for connections in _connections(measured))]
    parts.append(starts(measured))
    if skipped:
        parts.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in skipped.items()) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(measured: dict[str, Measured], connections: int) -> str:
    rows = [
        (
            one.system.name,
            one.system.about,
            f"{found.requests_a_second:,.0f}",
            f"{found.p50_ms:.2f}",
            f"{found.p99_ms:.2f}",
            f"{found.cpu_ms:.3f}",
            f"{found.failed}",
        )
        for one in measured.values()
        if (found := one.at(connections)) is not None
    ]
    header = ("server", "", "requests/s", "p50, ms", "p99, ms", "CPU, ms a request", "failed")
    prose = "Every connection sends its next request as soon as it has its answer."
    return section(f"{connections} connection{'s' if connections > 1 else ''}", prose, header, rows)


def starts(measured: dict[str, Measured]) -> str:
    rows = [
        (one.system.name, f"{one.start_seconds:.2f}", f"{one.found[-1].rss_mb:.0f}") for one in measured.values() if one.found
    ]
    prose = "Seconds until the first right sign of life, and resident memory of all its processes after the load."
    return section("Start and memory", prose, ("server", "ready, s", "memory, MB"), rows)


def aims(measured: dict[str, Measured]) -> str:
    """What was aimed at, at 16 connections, and what was reached."""
    rows = []
    for own, peer, wanted in (
        ("binary", "floor", 0.7),
        ("json", "fastapi-tuned", 0.8),
        ("json", "bentoml", 5.0),
        ("json", "litserve", 3.0),
    ):
        ratio = _ratio(measured, own, peer)
        if ratio is not None:
            name = f"{measured[own].system.name} ≥ {wanted:g} × {measured[peer].system.name}"
            rows.append((name, f"{ratio:.2f}×", "met" if ratio >= wanted else "not met"))
    for own in ("binary", "json"):
        if own in measured and (found := measured[own].at(16)) is not None:
            name = measured[own].system.name
            rows.append((f"{name}: p99 below 8 ms", f"{found.p99_ms:.2f} ms", "met" if found.p99_ms < 8 else "not met"))
            rows.append((f"{name}: below 120 MB", f"{found.rss_mb:.0f} MB", "met" if found.rss_mb < 120 else "not met"))
            start = measured[own].start_seconds
            rows.append((f"{name}: ready in 1.5 s", f"{start:.2f} s", "met" if start <= 1.5 else "not met"))
    return section("Aims", "At 16 connections.", ("aim", "seen", ""), rows) if rows else ""


def _ratio(measured: dict[str, Measured], own: str, peer: str) -> float | None:
    ours, theirs = (measured[name].at(16) if name in measured else None for name in (own, peer))
    return None if ours is None or theirs is None else ours.requests_a_second / theirs.requests_a_second


def _connections(measured: dict[str, Measured]) -> list[int]:
    return sorted({found.connections for one in measured.values() for found in one.found})

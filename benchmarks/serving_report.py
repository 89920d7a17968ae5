"""Writes the page of the serving benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median_low

from benchmarks.report import hardware, section, wrap
from benchmarks.serving_load import LoadResult, median_round
from benchmarks.serving_systems import System

VERSIONS = ("bentoml", "fastapi", "starlette", "uvicorn", "onnxruntime", "mlflow")
HEAD = """# Serving: one small CNN behind HTTP

Written by `python -m benchmarks.serving` in {minutes:.1f} minutes on {hardware}, {versions}. Load average {load[0]:.1f} at the
beginning, {load[1]:.1f} at the end. Load by wrk with one thread on the same machine, {seconds:g} s per measurement. All
servers were started and measured one after another, in {rounds} rounds; the tables show the median round.

All servers answer the same request, one image of 28 × 28 pixels, with the same small CNN (two convolutions, 10 classes, random
weights), in one process with one thread for the model. Headrace verifies the token, checks the request against the
contract, meters it, records the answer and updates the Prometheus metrics, as in production. *Binary* is the Open Inference
Protocol with binary tensors. *Gateway* is through Envoy, which also verifies the token. The floor is a bare route that checks
nothing."""


@dataclass
class ServerResult:
    """Measurements of one server, in all rounds."""

    system: System
    starts: list[float] = field(default_factory=list)
    """Seconds until it was ready."""
    found: list[LoadResult] = field(default_factory=list)

    @property
    def start_seconds(self) -> float:
        return median_low(self.starts)

    def at(self, connections: int) -> LoadResult | None:
        rounds = [one for one in self.found if one.connections == connections]
        return median_round(rounds) if rounds else None


def page(
    measured: dict[str, ServerResult],
    skipped: dict[str, str],
    minutes: float,
    load: tuple[float, float],
    seconds: float,
    rounds: int,
) -> str:
    """Returns the page as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    head = HEAD.format(minutes=minutes, hardware=hardware(), versions=versions, load=load, seconds=seconds, rounds=rounds)
    parts = [wrap(head), targets(measured), *(table(measured, connections) for connections in _connections(measured))]
    parts.append(starts(measured))
    if skipped:
        parts.append("Not measured: " + "; ".join(f"{name} ({why})" for name, why in skipped.items()) + ".")
    return "\n\n".join(part for part in parts if part) + "\n"


def table(measured: dict[str, ServerResult], connections: int) -> str:
    rows = [
        (
            one.system.name,
            one.system.about,
            f"{found.requests_per_second:,.0f}",
            f"{found.p50_ms:.2f}",
            f"{found.p99_ms:.2f}",
            f"{found.cpu_ms:.3f}",
            f"{found.failed}",
        )
        for one in measured.values()
        if (found := one.at(connections)) is not None
    ]
    header = ("server", "", "requests/s", "p50, ms", "p99, ms", "CPU, ms per request", "failed")
    prose = "Every connection sends its next request as soon as the last one is answered."
    return section(f"{connections} connection{'s' if connections > 1 else ''}", prose, header, rows)


def starts(measured: dict[str, ServerResult]) -> str:
    rows = [
        (one.system.name, f"{one.start_seconds:.2f}", f"{one.found[-1].rss_mb:.0f}") for one in measured.values() if one.found
    ]
    prose = "Seconds until the readiness check succeeds, and resident memory of all processes of the server after the load."
    return section("Start and memory", prose, ("server", "ready, s", "memory, MB"), rows)


def targets(measured: dict[str, ServerResult]) -> str:
    """Returns the targets at 16 connections, and whether they are met."""
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
    return section("Targets", "At 16 connections.", ("target", "measured", ""), rows) if rows else ""


def _ratio(measured: dict[str, ServerResult], own: str, peer: str) -> float | None:
    ours, theirs = (measured[name].at(16) if name in measured else None for name in (own, peer))
    return None if ours is None or theirs is None else ours.requests_per_second / theirs.requests_per_second


def _connections(measured: dict[str, ServerResult]) -> list[int]:
    return sorted({found.connections for one in measured.values() for found in one.found})

"""Compares serving with its peers: `python -m benchmarks.serving --out docs/benchmarks/serving.md`.

It takes less than 10 minutes on 2 cores. `--systems json,fastapi-tuned --rounds 1` is quick; `--requests 1000000` checks
whether memory grows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.serving_load import load, require_wrk
from benchmarks.serving_model import write_model
from benchmarks.serving_report import ServerResult, page
from benchmarks.serving_systems import SYSTEMS, RunningServer, Workspace, free_port, make_workspace
from headrace.errors import HeadraceError

WARM_SECONDS = 1.0


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    try:
        require_wrk()
        names = [name for name in options.systems.split(",") if name]
        if unknown := sorted(set(names) - set(SYSTEMS)):
            raise HeadraceError(f"unknown server {unknown[0]!r}", where="--systems", hint="known: " + ", ".join(SYSTEMS))
        with tempfile.TemporaryDirectory(prefix="headrace-serving-") as folder:
            workspace = make_workspace(Path(folder), write_model)
            if options.requests:
                _soak(workspace, names, options.requests)
            else:
                _measure(workspace, names, options)
    except HeadraceError as error:
        sys.exit(str(error))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.serving", description=__doc__)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated: " + ", ".join(SYSTEMS))
    parser.add_argument("--connections", default="1,16,256", help="comma-separated")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all servers; the median one counts")
    parser.add_argument(
        "--requests", type=int, default=0, help="instead, send this many requests to each server and record its memory"
    )
    parser.add_argument("--out", type=Path, help="file for the page (default: none)")
    return parser.parse_args(argv)


def _measure(workspace: Workspace, names: list[str], options: argparse.Namespace) -> None:
    start, load_before = time.monotonic(), os.getloadavg()[0]
    measured: dict[str, ServerResult] = {}
    skipped: dict[str, str] = {}
    for _ in range(options.rounds):
        for name in names:
            if name in skipped:
                continue
            try:
                _measure_once(workspace, measured.setdefault(name, ServerResult(SYSTEMS[name])), options)
            except HeadraceError as error:
                measured.pop(name)
                skipped[name] = error.message.splitlines()[0]
                print(f"{SYSTEMS[name].name}: {error}", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - start) / 60
    text = page(measured, skipped, minutes, (load_before, os.getloadavg()[0]), options.seconds, options.rounds)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    print("\n" + text)


def _measure_once(workspace: Workspace, measured: ServerResult, options: argparse.Namespace) -> None:
    """Starts one server, measures it and stops it."""
    with measured.system.open(workspace, free_port()) as running:
        measured.starts.append(running.start_seconds)
        load(running, 16, WARM_SECONDS, workspace.root)
        for connections in map(int, options.connections.split(",")):
            found = load(running, connections, options.seconds, workspace.root)
            measured.found.append(found)
            print(
                f"{measured.system.name}, {connections} connections: {found.requests_per_second:,.0f} requests/s, "
                f"p50 {found.p50_ms:.2f} ms, p99 {found.p99_ms:.2f} ms, CPU {found.cpu_ms:.3f} ms, "
                f"{found.rss_mb:.0f} MB, {found.failed} failed, ready in {running.start_seconds:.2f} s",
                flush=True,
            )


def _soak(workspace: Workspace, names: list[str], requests: int) -> None:
    """Prints the memory after every tenth of the requests; it does not grow if the last tenths add nothing."""
    for name in names:
        system = SYSTEMS[name]
        with system.open(workspace, free_port()) as running:
            seen = _memory(workspace, running, requests)
        grown = seen[-1] - seen[len(seen) // 2]
        print(f"{system.name}: MB by tenths {', '.join(f'{mb:.1f}' for mb in seen)}; the second half added {grown:.1f} MB")


def _memory(workspace: Workspace, running: RunningServer, requests: int) -> list[float]:
    seen: list[float] = []
    sent = 0
    while sent < requests:
        found = load(running, 16, 5.0, workspace.root)
        sent += found.requests
        if sent >= requests * (len(seen) + 1) / 10:
            seen.append(found.rss_mb)
            print(f"{sent:,} requests, {found.rss_mb:.1f} MB, {found.failed} failed", flush=True)
    return seen


if __name__ == "__main__":
    main()

"""Measures how one tenant's large bodies slow down another tenant's small requests.

`python -m benchmarks.neighbours --out docs/benchmarks/neighbours.md` takes 3 minutes; `--rounds 1 --seconds 1 --rows 50` is
quick. The peers are FastAPI, tuned by hand, and BentoML.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from benchmarks.report import hardware, markdown, wrap
from benchmarks.serving_model import sample, write_model
from benchmarks.serving_systems import (
    JSON,
    V1_REQUEST,
    RunningServer,
    SampleRequest,
    Workspace,
    bentoml_service,
    free_port,
    make_workspace,
    replica,
    script,
)
from headrace.errors import HeadraceError
from headrace.serving.access import tokens

SENDERS = 4
PAUSE_SECONDS = 0.005
"""Pause of the client of small requests, after each answer."""
INSTANCE = {"pixels": sample().tolist()}
SMALL_BODY = json.dumps({"instances": [INSTANCE]}).encode()
SERVERS = ("Headrace", "FastAPI", "BentoML")
COLUMNS = (
    "server",
    "alone: p50, p99 in ms",
    "beside large bodies: p50, p99 in ms",
    "p99 beside / Headrace's",
    "large bodies per second",
)
HEAD = """# Neighbours: small requests beside another tenant's large bodies

Written by `python -m benchmarks.neighbours` in {minutes:.1f} minutes on {hardware}, bentoml {bentoml}, fastapi {fastapi},
onnxruntime {onnxruntime}. Each server is one process with one thread for its model, the small CNN of the
[serving benchmark](serving.md). All were measured one after another, in {rounds} rounds of {seconds:g} s; the table shows the
round with the median p99.

One client sends requests of one image, with a pause of 5 ms after each answer: first alone, then while {senders} clients of
another tenant send bodies of {rows:,} images ({megabytes:.1f} MB of JSON), each as soon as its last one is answered. *FastAPI*
is tuned: it uses orjson, and runs large requests in a thread. *BentoML* follows its quickstart. Clients and servers share the
CPUs."""


@dataclass(frozen=True)
class RoundResult:
    """One round: p50 and p99 of the small requests in milliseconds, and the rate of answered large bodies."""

    alone: tuple[float, float]
    beside: tuple[float, float]
    large_per_second: float


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="headrace-neighbours-") as folder:
            found = _measure(Path(folder), options)
    except HeadraceError as error:
        sys.exit(str(error))
    text = _page(found, options, (time.monotonic() - start) / 60)
    print("\n" + text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.neighbours", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all servers; the one with the median p99 counts")
    parser.add_argument("--rows", type=int, default=4000, help="rows of a large body")
    parser.add_argument("--out", type=Path, help="file for the page (default: none)")
    return parser.parse_args(argv)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, RoundResult]:
    workspace = make_workspace(root, write_model)
    rounds: dict[str, list[RoundResult]] = {server: [] for server in SERVERS}
    for _ in range(options.rounds):
        for server in SERVERS:
            with _open(server, workspace) as running:
                found = _measure_round(running, _other_tenant(server, workspace), options)
            rounds[server].append(found)
            print(f"{server}: p99 {found.alone[1]:.1f} ms alone, {found.beside[1]:.1f} ms beside large bodies", flush=True)
    return {server: median_round(found) for server, found in rounds.items()}


def median_round(rounds: Sequence[RoundResult]) -> RoundResult:
    """Returns the round with the median p99 beside large bodies."""
    return sorted(rounds, key=lambda one: one.beside[1])[(len(rounds) - 1) // 2]


def _open(server: str, workspace: Workspace) -> contextlib.AbstractContextManager[RunningServer]:
    request = SampleRequest("/predict", SMALL_BODY, JSON, V1_REQUEST.is_correct)
    if server == "FastAPI":
        return script("fastapi_many.py", request)(workspace, free_port())
    if server == "BentoML":
        return bentoml_service("bentoml_many:Digits", request)(workspace, free_port())
    return replica(workspace, free_port(), replace(request, path=V1_REQUEST.path))


def _other_tenant(server: str, workspace: Workspace) -> dict[str, str]:
    """Returns headers with the token of a second tenant; the peers have no tenants."""
    if server != "Headrace":
        return JSON
    token, _ = tokens.issue(workspace.project, "neighbour", [workspace.name], 3600)
    return {**JSON, "authorization": f"Bearer {token}"}


def _measure_round(running: RunningServer, headers: dict[str, str], options: argparse.Namespace) -> RoundResult:
    url = running.url + running.request.path
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        pool.submit(send_small, url, running.request.headers, 1.0).result()  # warm
        alone = pool.submit(send_small, url, running.request.headers, options.seconds).result()
        large = pool.submit(send_large, url, headers, options.rows, options.seconds + 2.0)
        time.sleep(1.0)
        beside = pool.submit(send_small, url, running.request.headers, options.seconds).result()
        return RoundResult(_percentiles(alone), _percentiles(beside), large.result() / (options.seconds + 2.0))


def send_small(url: str, headers: dict[str, str], seconds: float) -> list[float]:
    """Sends requests of one row, one after another, and returns their milliseconds.

    Raises:
        HeadraceError: a request was not answered with status 200.
    """
    connection, end, found = _connect(url), time.monotonic() + seconds, []
    while time.monotonic() < end:
        start = time.perf_counter()
        if (status := _post(connection, url, SMALL_BODY, headers)) != 200:
            raise HeadraceError(f"a small request was answered with status {status}", where=url, hint="read the server's log")
        found.append(1e3 * (time.perf_counter() - start))
        time.sleep(PAUSE_SECONDS)
    return found


def send_large(url: str, headers: dict[str, str], rows: int, seconds: float) -> int:
    """Sends large bodies and returns how many were answered; a refused one is sent again after half a second."""
    body = json.dumps({"instances": [INSTANCE] * rows}).encode()
    end, answered = time.monotonic() + seconds, []

    def send() -> None:
        connection = _connect(url)
        while time.monotonic() < end:
            status = _post(connection, url, body, headers)
            if status == 200:
                answered.append(status)
            else:
                time.sleep(0.5)

    threads = [Thread(target=send) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(answered)


def _connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)


def _post(connection: http.client.HTTPConnection, url: str, body: bytes, headers: dict[str, str]) -> int:
    connection.request("POST", urlsplit(url).path, body, headers)
    response = connection.getresponse()
    response.read()
    return response.status


def _percentiles(milliseconds: list[float]) -> tuple[float, float]:
    """Returns p50 and p99."""
    ordered = sorted(milliseconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _page(found: dict[str, RoundResult], options: argparse.Namespace, minutes: float) -> str:
    versions = {name: version(name) for name in ("bentoml", "fastapi", "onnxruntime")}
    size = options.rows * len(json.dumps(INSTANCE)) / 1e6
    head = HEAD.format(
        minutes=minutes,
        hardware=hardware(),
        rounds=options.rounds,
        seconds=options.seconds,
        senders=SENDERS,
        rows=options.rows,
        megabytes=size,
        **versions,
    )
    ours = found["Headrace"].beside[1]
    return "\n\n".join([wrap(head), markdown(COLUMNS, [_row(server, found[server], ours) for server in SERVERS])]) + "\n"


def _row(server: str, found: RoundResult, ours: float) -> tuple[str, ...]:
    times = (f"{p50:.1f}, {p99:.1f}" for p50, p99 in (found.alone, found.beside))
    return (server, *times, f"{found.beside[1] / ours:.1f}", f"{found.large_per_second:.2f}")


if __name__ == "__main__":
    main()

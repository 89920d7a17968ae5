"""What one tenant's large bodies do to another's small requests: `python -m benchmarks.neighbours --out
docs/benchmarks/neighbours.md` (3 minutes).

The peers are FastAPI, tuned by hand, and BentoML. `--rounds 1 --seconds 1 --rows 50` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from benchmarks.gate_report import hardware, markdown
from benchmarks.serving_model import sample, write_model
from benchmarks.serving_systems import (
    JSON,
    V1_ASK,
    Ask,
    Place,
    Running,
    bentoml_service,
    free_port,
    make_place,
    replica,
    script,
)
from headrace.errors import HeadraceError
from headrace.serving.access import tokens

SENDERS = 4
PAUSE_SECONDS = 0.005
"""Of the small requests' client, between an answer and its next request."""
INSTANCE = {"pixels": sample().tolist()}
ONE = json.dumps({"instances": [INSTANCE]}).encode()
WAYS = ("Headrace", "FastAPI", "BentoML")
COLUMNS = (
    "server",
    "alone: p50, p99 in ms",
    "beside large bodies: p50, p99 in ms",
    "that p99 / Headrace's",
    "large bodies a second",
)
HEAD = """# Neighbours: small requests beside another tenant's large bodies

Written by `python -m benchmarks.neighbours` in {minutes:.1f} minutes on {hardware}, bentoml {bentoml}, fastapi {fastapi},
onnxruntime {onnxruntime}. Each server is one process with one thread for its model, the small CNN of the
[serving benchmark](serving.md). All were measured one after another, {rounds} times over, {seconds:g} s each time; the round
with the median p99 counts.

One client sends requests of one image, with a pause of 5 ms after each answer, first alone, then while {senders} others of
another tenant send bodies of {rows:,} images ({megabytes:.1f} MB of JSON), each as soon as it has its answer. *FastAPI* is
tuned: orjson, and what takes long in a thread. *BentoML* is as in its quickstart. Clients and servers share the processors."""


@dataclass(frozen=True)
class Found:
    """Of one round: milliseconds of the small requests, and what became of the large ones."""

    alone: tuple[float, float]
    beside: tuple[float, float]
    large_a_second: float


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
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="by turns; the one with the median p99 counts")
    parser.add_argument("--rows", type=int, default=4000, help="of a large body")
    parser.add_argument("--out", type=Path, help="write the page here")
    return parser.parse_args(argv)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Found]:
    place = make_place(root, write_model)
    rounds: dict[str, list[Found]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way in WAYS:
            with _open(way, place) as running:
                found = _beside(running, _other_tenant(way, place), options)
            rounds[way].append(found)
            print(f"{way}: p99 {found.alone[1]:.1f} ms alone, {found.beside[1]:.1f} ms beside large bodies", flush=True)
    return {way: median_round(found) for way, found in rounds.items()}


def median_round(rounds: Sequence[Found]) -> Found:
    """The one with the median p99 beside large bodies."""
    return sorted(rounds, key=lambda one: one.beside[1])[(len(rounds) - 1) // 2]


def _open(way: str, place: Place) -> contextlib.AbstractContextManager[Running]:
    asked = Ask("/predict", ONE, JSON, V1_ASK.is_right)
    if way == "FastAPI":
        return script("fastapi_many.py", asked)(place, free_port())
    if way == "BentoML":
        return bentoml_service("bentoml_many:Digits", asked)(place, free_port())
    return replica(place, free_port(), replace(asked, path=V1_ASK.path))


def _other_tenant(way: str, place: Place) -> dict[str, str]:
    """Headers of another one than the small requests'; the peers know no tenants."""
    if way != "Headrace":
        return JSON
    token, _ = tokens.issue(place.project, "neighbour", [place.name], 3600)
    return {**JSON, "authorization": f"Bearer {token}"}


def _beside(running: Running, headers: dict[str, str], options: argparse.Namespace) -> Found:
    url = running.url + running.ask.path
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        pool.submit(ask_often, url, running.ask.headers, 1.0).result()  # warm
        alone = pool.submit(ask_often, url, running.ask.headers, options.seconds).result()
        large = pool.submit(send_large, url, headers, options.rows, options.seconds + 2.0)
        time.sleep(1.0)
        beside = pool.submit(ask_often, url, running.ask.headers, options.seconds).result()
        return Found(_percentiles(alone), _percentiles(beside), large.result() / (options.seconds + 2.0))


def ask_often(url: str, headers: dict[str, str], seconds: float) -> list[float]:
    """Milliseconds of requests of one row, one after another. A refusal is an error."""
    connection, end, found = _connect(url), time.monotonic() + seconds, []
    while time.monotonic() < end:
        start = time.perf_counter()
        if (status := _post(connection, url, ONE, headers)) != 200:
            raise HeadraceError(f"a small request was answered {status}", where=url, hint="read the server's log")
        found.append(1e3 * (time.perf_counter() - start))
        time.sleep(PAUSE_SECONDS)
    return found


def send_large(url: str, headers: dict[str, str], rows: int, seconds: float) -> int:
    """How many large bodies were answered; one that is refused for overload is sent again after half a second."""
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
    """p50 and p99."""
    ordered = sorted(milliseconds)
    return ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _page(found: dict[str, Found], options: argparse.Namespace, minutes: float) -> str:
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
    title, *paragraphs = head.split("\n\n")
    parts = [title, *(textwrap.fill(" ".join(paragraph.split()), 124) for paragraph in paragraphs)]
    ours = found["Headrace"].beside[1]
    return "\n\n".join([*parts, markdown(COLUMNS, [_row(way, found[way], ours) for way in WAYS])]) + "\n"


def _row(way: str, found: Found, ours: float) -> tuple[str, ...]:
    times = (f"{p50:.1f}, {p99:.1f}" for p50, p99 in (found.alone, found.beside))
    return (way, *times, f"{found.beside[1] / ours:.1f}", f"{found.large_a_second:.2f}")


if __name__ == "__main__":
    main()

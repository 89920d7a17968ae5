"""Requests run together or one by one: `python -m benchmarks.batching --out docs/benchmarks/batching.md` (5 minutes).

A wide network gains by company and a small one does not; a bento measures which is its model's case when it is built. The peer
is BentoML's adaptive batching. `--rounds 1 --seconds 1` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from torch import nn

from benchmarks.gate_report import hardware, section
from benchmarks.serving_load import Found, load, median_round, require_wrk
from benchmarks.serving_model import LABELS, contract_of, export, sample, write_model
from benchmarks.serving_systems import (
    JSON,
    V1_ASK,
    Ask,
    Place,
    Running,
    bentoml_service,
    free_port,
    make_place,
    prepare_bento,
    replica,
)
from headrace.errors import HeadraceError
from headrace.runtime.contract import InputField

FEATURES, WIDTH = 256, 4096
TOGETHER = {"max_rows": 32, "wait_seconds": 0.0}
WAYS = ("together", "one by one", "BentoML")
COLUMNS = (
    "connections",
    *(f"{way}, requests/s" for way in WAYS),
    "together / one by one",
    *(f"{way}, p50 and p99 in ms" for way in WAYS),
)
HEAD = """# Batching: requests run together, or one by one

Written by `python -m benchmarks.batching` in {minutes:.1f} minutes on {hardware}, bentoml {bentoml}, onnxruntime
{onnxruntime}. Load by wrk on the same machine, {seconds:g} s a measurement; all servers were measured one after another,
{rounds} times over, and the median rate counts.

Each server is one process with one thread for its model, and each request has one row. *Together*: what has gathered in the
queue while the model ran is run next, at once. *One by one*: each request runs alone. A bento chooses for itself when it is
built, by measuring its model; here both ways were forced, to see whether it chooses well. *BentoML* is its adaptive batching
with its defaults and at most 32 rows."""


@dataclass(frozen=True)
class Subject:
    """A model, and how it is asked."""

    name: str
    about: str
    write: Callable[[Path], None]
    instance: dict[str, Any]


@dataclass
class Measured:
    """One subject."""

    chosen: str
    found: dict[tuple[str, int], list[Found]] = field(default_factory=dict)

    def at(self, way: str, connections: int) -> Found:
        return median_round(self.found[way, connections])


def write_wide(folder: Path, width: int = WIDTH) -> None:
    """A dense network whose weights do not fit the processor's cache: for one row they are read as often as for 32."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(LABELS))]
    export(nn.Sequential(*layers, nn.Softmax(1)).eval(), torch.zeros(2, FEATURES), "features", folder)
    features = InputField(name="features", dtype="float32", shape=(FEATURES,))
    contract_of(features, _features()).write(folder / "contract.json")


def _features() -> list[float]:
    return [round(value, 3) for value in np.random.default_rng(0).normal(size=FEATURES).tolist()]


SUBJECTS = (
    Subject("A wide network", f"Three dense layers, {WIDTH:,} units wide.", write_wide, {"features": _features()}),
    Subject("A small network", "The CNN of the [serving benchmark](serving.md).", write_model, {"pixels": sample().tolist()}),
)


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    start = time.monotonic()
    try:
        require_wrk()
        with tempfile.TemporaryDirectory(prefix="headrace-batching-") as folder:
            found = {subject.name: _measure(subject, Path(folder) / str(i), options) for i, subject in enumerate(SUBJECTS)}
    except HeadraceError as error:
        sys.exit(str(error))
    text = _page(found, options, (time.monotonic() - start) / 60)
    print("\n" + text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.batching", description=__doc__)
    parser.add_argument("--connections", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="by turns; the median one counts")
    parser.add_argument("--out", type=Path, help="write the page here")
    return parser.parse_args(argv)


def _measure(subject: Subject, root: Path, options: argparse.Namespace) -> Measured:
    place = make_place(root, subject.write)
    measured = Measured("together" if _choices(place)["batching"] else "one by one")
    for _ in range(options.rounds):
        for way in WAYS:
            with _open(way, place, subject) as running:
                load(running, 16, 1.0, root)
                for connections in options.connections:
                    found = load(running, connections, options.seconds, root)
                    measured.found.setdefault((way, connections), []).append(found)
                    rate = f"{found.requests_a_second:,.0f} requests/s, p99 {found.p99_ms:.1f} ms"
                    print(f"{subject.name}, {way}, {connections} connections: {rate}", flush=True)
    return measured


def _choices(place: Place) -> dict[str, Any]:
    choices: dict[str, Any] = json.loads((prepare_bento(place).model_path / "serving.json").read_text(encoding="utf-8"))
    return choices


def _open(way: str, place: Place, subject: Subject) -> contextlib.AbstractContextManager[Running]:
    if way == "BentoML":
        body = json.dumps({"rows": list(subject.instance.values())}).encode()
        return bentoml_service("bentoml_adaptive:Batched", Ask("/predict", body, JSON, _has_ten))(place, free_port())
    batching = TOGETHER if way == "together" else None
    (prepare_bento(place).model_path / "serving.json").write_text(json.dumps({"batching": batching}), encoding="utf-8")
    ask = Ask(V1_ASK.path, json.dumps(subject.instance).encode(), JSON, V1_ASK.is_right)
    return replica(place, free_port(), ask)


def _has_ten(answer: httpx.Response) -> bool:
    return len(answer.json()[0]) == len(LABELS)


def _page(found: dict[str, Measured], options: argparse.Namespace, minutes: float) -> str:
    versions = {name: version(name) for name in ("bentoml", "onnxruntime")}
    head = HEAD.format(minutes=minutes, hardware=hardware(), seconds=options.seconds, rounds=options.rounds, **versions)
    title, *paragraphs = head.split("\n\n")
    parts = [title, *(textwrap.fill(" ".join(paragraph.split()), 124) for paragraph in paragraphs)]
    for subject in SUBJECTS:
        measured = found[subject.name]
        about = f"{subject.about} Its bento chose: **{measured.chosen}**."
        parts.append(section(subject.name, about, COLUMNS, [_row(measured, count) for count in options.connections]))
    return "\n\n".join(parts) + "\n"


def _row(measured: Measured, connections: int) -> tuple[str, ...]:
    ways = [measured.at(way, connections) for way in WAYS]
    ratio = ways[0].requests_a_second / ways[1].requests_a_second
    rates = (f"{way.requests_a_second:,.0f}" for way in ways)
    waits = (f"{way.p50_ms:.1f}, {way.p99_ms:.1f}" for way in ways)
    return (str(connections), *rates, f"{ratio:.2f}", *waits)


if __name__ == "__main__":
    main()

"""Measures requests run together and one by one: `python -m benchmarks.batching --out docs/benchmarks/batching.md`.

A wide network is faster with batching and a small one is not; Headrace measures this for each model when it builds the bento.
The peer is BentoML's adaptive batching. It takes 5 minutes; `--rounds 1 --seconds 1` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
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

from benchmarks.report import hardware, section, wrap
from benchmarks.serving_load import LoadResult, load, median_round, require_wrk
from benchmarks.serving_model import LABELS, contract_of, export, sample, write_model
from benchmarks.serving_systems import (
    JSON,
    V1_REQUEST,
    RunningServer,
    SampleRequest,
    Workspace,
    bentoml_service,
    free_port,
    make_workspace,
    prepare_bento,
    replica,
)
from headrace.errors import HeadraceError
from headrace.runtime.input_field import InputField

FEATURES, WIDTH = 256, 4096
TOGETHER = {"max_rows": 32, "wait_seconds": 0.0}
MODES = ("together", "one by one", "BentoML")
COLUMNS = (
    "connections",
    *(f"{mode}, requests/s" for mode in MODES),
    "together / one by one",
    *(f"{mode}, p50 and p99 in ms" for mode in MODES),
)
HEAD = """# Batching: requests run together, or one by one

Written by `python -m benchmarks.batching` in {minutes:.1f} minutes on {hardware}, bentoml {bentoml}, onnxruntime
{onnxruntime}. Load by wrk on the same machine, {seconds:g} s per measurement. All servers were measured one after another, in
{rounds} rounds; the table shows the round with the median rate.

Each server is one process with one thread for its model, and each request has one row. *Together*: the requests that arrived
while the model was running are run next, as one batch. *One by one*: each request runs alone. When a bento is built, Headrace
measures its model and chooses one of the two; here both were forced, to check the choice. *BentoML* is its adaptive batching
with default settings and at most 32 rows."""


@dataclass(frozen=True)
class Case:
    """A model, and the instance that clients send."""

    name: str
    about: str
    write: Callable[[Path], None]
    instance: dict[str, Any]


@dataclass
class CaseResult:
    """Measurements of one model, by mode and connections."""

    chosen: str
    found: dict[tuple[str, int], list[LoadResult]] = field(default_factory=dict)

    def at(self, mode: str, connections: int) -> LoadResult:
        return median_round(self.found[mode, connections])


def write_wide(folder: Path, width: int = WIDTH) -> None:
    """Writes a dense network whose weights do not fit the CPU's cache: one row reads as many weights as 32 rows."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(LABELS))]
    export(nn.Sequential(*layers, nn.Softmax(1)).eval(), torch.zeros(2, FEATURES), "features", folder)
    features = InputField(name="features", dtype="float32", shape=(FEATURES,))
    contract_of(features, _features()).write(folder / "contract.json")


def _features() -> list[float]:
    return [round(value, 3) for value in np.random.default_rng(0).normal(size=FEATURES).tolist()]


CASES = (
    Case("A wide network", f"Three dense layers, {WIDTH:,} units wide.", write_wide, {"features": _features()}),
    Case("A small network", "The CNN of the [serving benchmark](serving.md).", write_model, {"pixels": sample().tolist()}),
)


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    start = time.monotonic()
    try:
        require_wrk()
        with tempfile.TemporaryDirectory(prefix="headrace-batching-") as folder:
            found = {case.name: _measure(case, Path(folder) / str(i), options) for i, case in enumerate(CASES)}
    except HeadraceError as error:
        sys.exit(str(error))
    text = _page(found, options, (time.monotonic() - start) / 60)
    print("\n" + text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.batching", description=__doc__)
    parser.add_argument("--connections", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all servers; the median one counts")
    parser.add_argument("--out", type=Path, help="file for the page (default: none)")
    return parser.parse_args(argv)


def _measure(case: Case, root: Path, options: argparse.Namespace) -> CaseResult:
    workspace = make_workspace(root, case.write)
    result = CaseResult("together" if _choices(workspace)["batching"] else "one by one")
    for _ in range(options.rounds):
        for mode in MODES:
            with _open(mode, workspace, case) as running:
                load(running, 16, 1.0, root)
                for connections in options.connections:
                    found = load(running, connections, options.seconds, root)
                    result.found.setdefault((mode, connections), []).append(found)
                    rate = f"{found.requests_per_second:,.0f} requests/s, p99 {found.p99_ms:.1f} ms"
                    print(f"{case.name}, {mode}, {connections} connections: {rate}", flush=True)
    return result


def _choices(workspace: Workspace) -> dict[str, Any]:
    choices: dict[str, Any] = json.loads((prepare_bento(workspace).model_path / "serving.json").read_text(encoding="utf-8"))
    return choices


def _open(mode: str, workspace: Workspace, case: Case) -> contextlib.AbstractContextManager[RunningServer]:
    if mode == "BentoML":
        body = json.dumps({"rows": list(case.instance.values())}).encode()
        return bentoml_service("bentoml_adaptive:Batched", SampleRequest("/predict", body, JSON, _has_ten_classes))(
            workspace, free_port()
        )
    batching = TOGETHER if mode == "together" else None
    (prepare_bento(workspace).model_path / "serving.json").write_text(json.dumps({"batching": batching}), encoding="utf-8")
    request = SampleRequest(V1_REQUEST.path, json.dumps(case.instance).encode(), JSON, V1_REQUEST.is_correct)
    return replica(workspace, free_port(), request)


def _has_ten_classes(answer: httpx.Response) -> bool:
    return len(answer.json()[0]) == len(LABELS)


def _page(found: dict[str, CaseResult], options: argparse.Namespace, minutes: float) -> str:
    versions = {name: version(name) for name in ("bentoml", "onnxruntime")}
    head = HEAD.format(minutes=minutes, hardware=hardware(), seconds=options.seconds, rounds=options.rounds, **versions)
    parts = [wrap(head)]
    for case in CASES:
        result = found[case.name]
        about = f"{case.about} Its bento runs requests **{result.chosen}**."
        parts.append(section(case.name, about, COLUMNS, [_row(result, count) for count in options.connections]))
    return "\n\n".join(parts) + "\n"


def _row(result: CaseResult, connections: int) -> tuple[str, ...]:
    modes = [result.at(mode, connections) for mode in MODES]
    ratio = modes[0].requests_per_second / modes[1].requests_per_second
    rates = (f"{mode.requests_per_second:,.0f}" for mode in modes)
    waits = (f"{mode.p50_ms:.1f}, {mode.p99_ms:.1f}" for mode in modes)
    return (str(connections), *rates, f"{ratio:.2f}", *waits)


if __name__ == "__main__":
    main()

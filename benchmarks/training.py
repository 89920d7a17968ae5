"""Compares the training loop with others, on the same models and rows in one run: `python -m benchmarks.training`.

The loops take turns, round by round, so that other work on the machine affects all of them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.training_loops import LOOPS
from benchmarks.training_models import Machine, Workload, floor, measure, workloads
from benchmarks.training_report import LIGHTNING, DeviceResult, page
from headrace.training.device import choose_precision

QUICK_ROWS = 64
GPU_TIMES = 20
"""Factor of the number of rows on a GPU, so that a round is long enough to be timed."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Trains every model with every loop, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU")
    parser.add_argument("--models", help="comma-separated, for example MLP,GCN (default: all)")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: the CPU, then a GPU if there is one")
    parser.add_argument("--without-lightning", action="store_true", help="skip Lightning (without it no network is needed)")
    parser.add_argument(
        "--quick", action="store_true", help="few rows and rounds, no Lightning: a check of the code, not a result"
    )
    parser.add_argument(
        "--out", type=Path, help="file for the report (default: docs/benchmarks/training.md, or none with --quick)"
    )
    parser.add_argument("--cache", type=Path, default=Path(".headrace/benchmarks"), help="folder for Lightning")
    options = parser.parse_args(arguments)
    out = options.out or (None if options.quick or options.models else Path("docs/benchmarks/training.md"))
    torch.set_num_threads(options.threads)
    has_lightning = not (options.quick or options.without_lightning) and install_lightning(
        options.cache.resolve() / "lightning"
    )
    names = [name for name in LOOPS if name != "Lightning" or has_lightning]
    devices = [options.device] if options.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    started, load = time.perf_counter(), os.getloadavg()[0]
    found = [on_device(torch.device(device), names, options) for device in devices]
    text = page(found, (time.perf_counter() - started) / 60, (load, os.getloadavg()[0]), has_lightning)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


def on_device(device: torch.device, names: list[str], options: argparse.Namespace) -> DeviceResult:
    """Trains every model with every loop on one device."""
    chosen = workloads(GPU_TIMES if device.type == "cuda" and not options.quick else 1)
    if options.models:
        chosen = [workload for workload in chosen if workload.name in options.models.split(",")]
    if options.quick:
        chosen = [workload.part(QUICK_ROWS) for workload in chosen]
    machine: Machine = measure(device, choose_precision("auto", device), options.quick)
    seconds = {workload.name: rounds(workload, names, device, 2 if options.quick else options.rounds) for workload in chosen}
    return DeviceResult(device, machine, chosen, {w.name: floor(w, machine) for w in chosen}, seconds)


def rounds(workload: Workload, names: list[str], device: torch.device, count: int) -> dict[str, list[float]]:
    """Returns the seconds of each round, by loop, without the first round, which warms up.

    Every other round runs in reverse order, so that no loop always follows the same one.
    """
    trained = {name: LOOPS[name](workload, workload.model().to(device).train(), device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(count + 1):
        print(f"{device.type}, {workload.name}: round {i} of {count}", end="\r" if i < count else "\n", file=sys.stderr)
        for name in names if i % 2 else reversed(names):
            took = trained[name]()
            if i:
                seconds[name].append(took)
    return seconds


def install_lightning(folder: Path) -> bool:
    """Installs Lightning, which is not a dependency of Headrace, into a separate folder; returns whether that succeeded."""
    sys.path.append(str(folder))
    if importlib.util.find_spec("pytorch_lightning") is None:
        uv, wanted = Path(sys.executable).with_name("uv"), f"pytorch-lightning=={LIGHTNING}"
        into = ["--python", sys.executable, "--no-deps", "--target", str(folder)]
        done = subprocess.run([str(uv), "pip", "install", "--quiet", *into, wanted], capture_output=True, text=True)
        if done.returncode:
            print(f"skipping Lightning, which cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return False
        importlib.invalidate_caches()
    return True


if __name__ == "__main__":
    main()

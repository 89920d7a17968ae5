"""The training engine against other loops, on the same models and rows in one run: `python -m benchmarks.training`.

Rounds are interleaved: each loop trains a round, then the next one does, so that other work on the machine meets all of them.
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
from benchmarks.training_report import LIGHTNING, Found, page
from headrace.training.device import choose_precision

QUICK_ROWS = 64
GPU_TIMES = 20
"""As many times the rows for a GPU, so that a round lasts long enough to be timed."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Runs every model through every loop, prints the report and writes it to `--out`; gives the report's text."""
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--models", help="some of them, such as MLP,GCN")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="one alone; else the CPU, then a GPU where there is one")
    parser.add_argument("--without-lightning", action="store_true", help="for a machine without a network")
    parser.add_argument("--quick", action="store_true", help="few rows and rounds, no Lightning: a check, no result")
    parser.add_argument("--out", type=Path, help="where the report goes (docs/benchmarks/training.md; nowhere with --quick)")
    parser.add_argument("--cache", type=Path, default=Path(".headrace/benchmarks"), help="where Lightning is installed")
    asked = parser.parse_args(arguments)
    out = asked.out or (None if asked.quick or asked.models else Path("docs/benchmarks/training.md"))
    torch.set_num_threads(asked.threads)
    brought = not (asked.quick or asked.without_lightning) and bring_lightning(asked.cache.resolve() / "lightning")
    names = [name for name in LOOPS if name != "Lightning" or brought]
    devices = [asked.device] if asked.device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    started, load = time.perf_counter(), os.getloadavg()[0]
    found = [on_device(torch.device(device), names, asked) for device in devices]
    text = page(found, (time.perf_counter() - started) / 60, (load, os.getloadavg()[0]), brought)
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    return text


def on_device(device: torch.device, names: list[str], asked: argparse.Namespace) -> Found:
    """Every model through every loop."""
    chosen = workloads(GPU_TIMES if device.type == "cuda" and not asked.quick else 1)
    if asked.models:
        chosen = [workload for workload in chosen if workload.name in asked.models.split(",")]
    if asked.quick:
        chosen = [workload.part(QUICK_ROWS) for workload in chosen]
    machine: Machine = measure(device, choose_precision("auto", device), asked.quick)
    seconds = {workload.name: rounds(workload, names, device, 2 if asked.quick else asked.rounds) for workload in chosen}
    return Found(device, machine, chosen, {w.name: floor(w, machine) for w in chosen}, seconds)


def rounds(workload: Workload, names: list[str], device: torch.device, count: int) -> dict[str, list[float]]:
    """Seconds of each round, by loop; the first round warms up and is left out. Every other round runs backwards, so that no
    loop always follows the same one."""
    trained = {name: LOOPS[name](workload, workload.model().to(device).train(), device) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(count + 1):
        print(f"{device.type}, {workload.name}: round {i} of {count}", end="\r" if i < count else "\n", file=sys.stderr)
        for name in names if i % 2 else reversed(names):
            took = trained[name]()
            if i:
                seconds[name].append(took)
    return seconds


def bring_lightning(folder: Path) -> bool:
    """Makes Lightning importable. It is no dependency of Headrace, so it is installed in a folder of its own; what it needs is
    there already."""
    sys.path.append(str(folder))
    if importlib.util.find_spec("pytorch_lightning") is None:
        uv, wanted = Path(sys.executable).with_name("uv"), f"pytorch-lightning=={LIGHTNING}"
        into = ["--python", sys.executable, "--no-deps", "--target", str(folder)]
        done = subprocess.run([str(uv), "pip", "install", "--quiet", *into, wanted], capture_output=True, text=True)
        if done.returncode:
            print(f"without Lightning, which cannot be installed: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return False
        importlib.invalidate_caches()
    return True


if __name__ == "__main__":
    main()

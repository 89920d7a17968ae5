"""Measures one variant in a process of its own: `python -m headrace.compression.measure FOLDER`, which prints JSON.

The model is opened as a replica opens it, with the same threads and options. Requests repeat the contract's sample.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from headrace.errors import ExportError

BATCHES = (1, 32)
SECONDS, FEWEST_RUNS, MOST_RUNS = 0.5, 15, 1000
ROUNDS = 2
"""How often all models are measured in turns: another program may take the processor for some seconds."""


class Measured(BaseModel):
    """The cost of a variant."""

    model_config = ConfigDict(frozen=True)
    latency_ms: dict[int, float]
    """Median time of a run by its number of rows, without decoding of requests and encoding of answers."""
    memory_mb: float
    """Peak memory of a process that has loaded this model alone and answered these rows."""
    threads: int


def measure_in_turns(folders: Sequence[Path], root: Path) -> list[Measured]:
    """Measures models in turns, each with its shortest medians of `ROUNDS` rounds.

    Raises:
        ExportError: as `measure`.
    """
    rounds = [[measure(folder, root) for folder in folders] for _ in range(ROUNDS)]
    return [_best(found) for found in zip(*rounds, strict=True)]


def _best(found: Sequence[Measured]) -> Measured:
    latencies = {rows: min(one.latency_ms[rows] for one in found) for rows in BATCHES}
    return found[0].model_copy(update={"latency_ms": latencies, "memory_mb": min(one.memory_mb for one in found)})


def measure(folder: Path, root: Path) -> Measured:
    """Measures the model in `folder` in a new process, whose working folder is `root`.

    Raises:
        ExportError: the model cannot be served.
    """
    command = [sys.executable, "-m", "headrace.compression.measure", str(folder.resolve())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ExportError(f"the model cannot be served: {reason}", where=str(folder), hint="use another method")
    return Measured.model_validate_json(done.stdout)


def main(folder: Path) -> None:
    from bentos.models.onnx_model import OnnxModel, load, threads_from_environment

    model = load(folder, threads_from_environment())
    latencies = {}
    for rows in BATCHES:
        instances = [model.contract.sample] * rows
        is_plain = type(model).predict is OnnxModel.predict
        run = partial(model.run, model.to_feeds(instances)) if is_plain else partial(model.predict, instances)
        latencies[rows] = _median_ms(run)
    threads = threads_from_environment() or model.contract.threads
    found = Measured(latency_ms=latencies, memory_mb=round(_peak_bytes() / 1e6, 1), threads=threads)
    sys.stdout.write(json.dumps(found.model_dump()))


def _peak_bytes() -> int:
    """Returns the peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _median_ms(run: Callable[[], object]) -> float:
    """Returns the median time of a call in milliseconds, of as many as fit into `SECONDS`."""
    run()
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < FEWEST_RUNS or (time.perf_counter() < ends and len(times) < MOST_RUNS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

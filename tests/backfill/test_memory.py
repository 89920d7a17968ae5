"""A source that is larger than the memory a backfill may take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backfill.released import Released
from tests.projects import table

HEADRACE = Path(sys.executable).with_name("headrace")
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Prints the highest memory, in kilobytes, of any process that a command has started and waited for."""


def peak_kilobytes(model: Released, data: Path) -> int:
    command = [HEADRACE, "backfill", model.version.model, "--data", data, "--out", data.with_name(f"scored-{data.name}")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, command), "--workers", "1"],
        cwd=model.project.root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_memory_does_not_grow_with_the_data(model: Released, tmp_path: Path, ending: str) -> None:
    def write(name: str, rows: int) -> Path:
        frame = table(rows).assign(note=[f"{row:08d}" + "x" * 16_000 for row in range(rows)])
        path = tmp_path / f"{name}{ending}"
        frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path, row_group_size=1000, compression=None)
        return path

    medium, large = write("medium", 6000), write("large", 18_000)
    assert large.stat().st_size - medium.stat().st_size > 190e6
    growth = peak_kilobytes(model, large) - peak_kilobytes(model, medium)
    assert growth < 90_000, f"{growth} kB"

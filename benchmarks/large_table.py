"""Measures every stage on tables larger than `data.memory`: seconds and peak memory by number of rows.

`python -m benchmarks.large_table` writes `docs/benchmarks/large-table.md`. Each stage runs in a separate process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import hardware, section, wrap
from headrace.project import Project

STAGES = ("ingest", "validate", "prepare", "train", "export", "evaluate")
MEMORY = "64MB"
BLOCK_ROWS = 2**18
FORMATS = {"csv": "FORMAT csv, HEADER", "jsonl": "FORMAT json"}
"""Other formats of the largest table, as DuckDB writes them."""
COLOURS = ("red", "green", "blue", "black", "white")
RECIPE = """
name: large
task: classification
data:
  source: large.{format}
  target: late
  memory: {memory}
  split: {{test: 0.1, validation: 0.1, seed: 7}}
expect:
  - {{type: expect_column_values_to_be_between, column: distance, min_value: 0, max_value: 100000}}
  - {{type: expect_column_values_to_not_be_null, column: distance}}
  - {{type: expect_column_values_to_be_between, column: speed, min_value: -100, max_value: 100, mostly: 0.999}}
  - {{type: expect_column_values_to_be_between, column: hour, min_value: 0, max_value: 23}}
  - {{type: expect_column_values_to_be_in_set, column: colour, value_set: [red, green, blue, black, white]}}
  - {{type: expect_column_value_lengths_to_equal, column: place, value: 4}}
  - {{type: expect_column_values_to_be_unique, column: number}}
  - {{type: expect_column_mean_to_be_between, column: weight, min_value: 60, max_value: 80}}
  - {{type: expect_table_row_count_to_be_between, min_value: 1000}}
model: {{name: mlp, hidden: [64, 32]}}
train: {{epochs: 1, batch_size: 1024, learning_rate: 0.002}}
serve: {{}}
"""


def main(arguments: Sequence[str] | None = None) -> str:
    """Measures every size, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1000000,3000000,10000000", help="sizes to measure, ascending, separated by commas")
    parser.add_argument("--memory", default=MEMORY, help=f"data.memory of the recipe (default: {MEMORY})")
    parser.add_argument("--out", type=Path, help="file for the report (default: none)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        print(json.dumps(run_stage(options.stage, Project(options.folder))))
        return ""
    sizes = [int(size) for size in options.rows.split(",")]
    started = time.perf_counter()
    all_in_memory = measure(sizes[0], "1TB")
    results = {rows: measure(rows, options.memory) for rows in sizes}
    formats = {name: measure_format(name, sizes[-1], options.memory) for name in FORMATS}
    text = report(results, all_in_memory, formats, options.memory, (time.perf_counter() - started) / 60)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
    return text


def measure(rows: int, memory: str) -> dict[str, Any]:
    """Returns seconds and peak memory of each stage on a table of `rows` rows; its project is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-large-"))
    try:
        table_bytes = make_project(folder, rows, memory)
        found: dict[str, Any] = {"bytes": table_bytes, "file": (folder / "large.parquet").stat().st_size}
        for stage in STAGES:
            command = [sys.executable, "-m", "benchmarks.large_table", "--stage", stage, "--folder", str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            sys.stderr.write(f"{rows:,} rows, {memory}: {stage} {found[stage]}\n")
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure_format(name: str, rows: int, memory: str) -> dict[str, Any]:
    """Returns seconds and peak memory of the ingest of the same table in another format, and the version that it makes."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-large-"))
    try:
        make_project(folder, rows, memory, name)
        command = [sys.executable, "-m", "benchmarks.large_table", "--stage", "ingest", "--folder", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        sys.stderr.write(f"{rows:,} rows, {memory}: ingest of {name} {found}\n")
        return {**found, "file": (folder / f"large.{name}").stat().st_size}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_stage(stage: str, project: Project) -> dict[str, Any]:
    """Runs one stage in this process; returns its seconds, without the start of Python, its peak memory in MB, and for the
    ingest the sha256 of the columns and rows that it stored."""
    from headrace.data.ingest import ingest
    from headrace.pipeline import stages
    from headrace.recipe.recipe import load_recipe

    recipe = load_recipe("large", project)
    started = time.perf_counter()
    if stage == "ingest":
        ingest(recipe, project, lambda line: None)
    else:
        stages.STAGES[stage](recipe, project)
    measured: dict[str, Any] = {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}
    return {**measured, "rows_sha256": rows_sha256(project)} if stage == "ingest" else measured


def rows_sha256(project: Project) -> str:
    """Returns a hash of what was stored: the file without its metadata, which names the source."""
    import pyarrow.parquet as pq

    digest = hashlib.sha256()
    with pq.ParquetFile(project.raw_data("large") / "0000-first.parquet") as file:
        digest.update(str(file.schema_arrow.remove_metadata()).encode())
        for batch in file.iter_batches(BLOCK_ROWS):
            for column in batch.columns:
                digest.update(repr(column.null_count).encode())
                for buffer in column.buffers():
                    digest.update(buffer or b"")
    return digest.hexdigest()


def peak_mb() -> float:
    """Returns the kernel's high-water mark of this process; `getrusage` would include the process that started it."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make_project(folder: Path, rows: int, memory: str, name: str = "parquet") -> int:
    """Creates a project with one recipe and its source; returns the size of the table in Arrow, in bytes."""
    (folder / "recipes").mkdir()
    (folder / "recipes" / "large.yaml").write_text(RECIPE.format(memory=memory, format=name))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "requirements.lock").write_text("")
    table_bytes = write_source(folder / "large.parquet", rows)
    if name != "parquet":
        import duckdb

        query = f"COPY (SELECT * FROM '{folder}/large.parquet') TO '{folder}/large.{name}' ({FORMATS[name]})"
        duckdb.connect(config={"preserve_insertion_order": True}).execute(query)
        (folder / "large.parquet").unlink()
    return table_bytes


def write_source(path: Path, rows: int) -> int:
    """Writes a Parquet file of 12 columns in row groups; a larger table starts with the rows of a smaller one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, table_bytes = None, 0
    for start in range(0, rows, BLOCK_ROWS):
        table = pa.table(block(start, min(BLOCK_ROWS, rows - start)))
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
        table_bytes += table.nbytes
    if writer is not None:
        writer.close()
    return table_bytes


def block(start: int, rows: int) -> dict[str, Any]:
    """Returns the columns of rows `start` to `start + rows`: numbers, some missing, integers, categories and a label."""
    import pyarrow as pa

    rng = np.random.default_rng((7, start))
    speed, wind, weight = rng.normal(0, 20, rows), rng.normal(0, 5, rows), rng.normal(70, 12, rows)
    distance, delay = rng.gamma(2, 500, rows), rng.exponential(10, rows)
    colour, hour = rng.integers(0, len(COLOURS), rows), rng.integers(0, 24, rows)
    late = speed / 20 + wind / 5 + (colour == 0) - (hour > 18) + rng.normal(0, 0.5, rows) > 0
    places = np.array([f"P{i:03d}" for i in range(300)])
    return {
        "number": np.arange(start, start + rows),
        "distance": distance,
        "speed": speed,
        "wind": pa.array(wind, mask=rng.random(rows) < 0.02),
        "weight": weight,
        "delay": delay,
        "hour": hour,
        "stops": rng.integers(0, 5, rows),
        "colour": np.array(COLOURS)[colour].tolist(),
        "place": places[rng.integers(0, 300, rows)].tolist(),
        "kind": np.array(["a", "b", "c"])[rng.integers(0, 3, rows)].tolist(),
        "late": np.where(late, "yes", "no").tolist(),
    }


def report(
    results: dict[int, dict[str, Any]],
    all_in_memory: dict[str, Any],
    formats: dict[str, dict[str, Any]],
    memory: str,
    minutes: float,
) -> str:
    """Returns the page."""
    sizes = list(results)
    names = [f"{rows:,} rows" for rows in sizes]
    first, last = results[sizes[0]], results[sizes[-1]]
    seconds = [
        [stage, *(f"{results[rows][stage]['seconds']:.1f}" for rows in sizes), _growth(results, stage)] for stage in STAGES
    ]
    peaks = [
        [stage, *(f"{results[rows][stage]['peak_mb']:,.0f}" for rows in sizes), f"{all_in_memory[stage]['peak_mb']:,.0f}"]
        for stage in STAGES
    ]
    import great_expectations
    import pandas as pd
    import psutil
    import pyarrow as pa

    total = psutil.virtual_memory().total / 2**30
    versions = f"pandas {pd.__version__}, pyarrow {pa.__version__}, great-expectations {great_expectations.__version__}"
    written = f"""
Written by `python -m benchmarks.large_table` in {minutes:.1f} minutes on {hardware()}, {versions}, {total:.0f} GB of memory.

The table has twelve columns; training is one epoch of a network with two hidden layers, in batches of 1,024, with
`data.memory: {memory}`. In memory, as Arrow tables, the data would take {first["bytes"] / 2**20:,.0f} MB with {names[0]} and
{last["bytes"] / 2**20:,.0f} MB with {names[-1]}; pandas and copies of parts need more. As a file the largest takes
{last["file"] / 2**20:,.0f} MB. Each stage ran in a separate process; the seconds exclude the start of Python."""
    about_seconds = f"""
The last column compares the largest table, with {sizes[-1] / sizes[0]:g} times the rows, to the smallest."""
    largest = {"parquet": {**last["ingest"], "file": last["file"]}, **formats}
    by_format = [
        [
            name,
            f"{one['file'] / 2**20:,.0f}",
            f"{one['seconds']:.1f}",
            f"{one['peak_mb']:,.0f}",
            "yes" if one["rows_sha256"] == last["ingest"]["rows_sha256"] else "no",
        ]
        for name, one in largest.items()
    ]
    about_formats = f"""
The ingest of {names[-1]} in other formats, as DuckDB writes them. The last column compares all stored values and their types
with those from Parquet."""
    about_peaks = """
This includes libraries, and pages of memory-mapped files (`train`), which the kernel can reclaim. The last column is the
smallest table with all of it in memory. Two things grow with the rows: in `evaluate` the predictions for the test rows and the
columns that define slices, in `train` the predictions for the validation rows."""
    return "\n\n".join(
        [
            "# A table larger than memory",
            wrap(written),
            section("Seconds", about_seconds, ["stage", *names, "ratio"], seconds),
            section(
                "Peak memory of the stage's process, in MB",
                about_peaks,
                ["stage", *names, f"{names[0]}, all in memory"],
                peaks,
            ),
            section(
                "Other formats", about_formats, ["format", "file, MB", "seconds", "peak, MB", "same rows and types"], by_format
            )
            + "\n",
        ]
    )


def _growth(results: dict[int, dict[str, Any]], stage: str) -> str:
    sizes = list(results)
    return f"{results[sizes[-1]][stage]['seconds'] / results[sizes[0]][stage]['seconds']:.1f} ×"


if __name__ == "__main__":
    main()

"""Measures how many pictures are ingested and versioned per second, beside copies of the same files and `dvc add` of them.

`python -m benchmarks.picture_ingest` writes `docs/benchmarks/picture-ingest.md`. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.large_table import peak_mb
from benchmarks.report import hardware, section, wrap
from headrace.project import Project

PICTURES, CLASSES, SIDE = 100_000, 20, 32
RECIPE = """
name: many
task: image-classification
data:
  source: photos
  target: label
  image: {size: [32, 32]}
expect: []
model: {name: cnn}
train: {}
serve: {}
"""
INGEST, AGAIN = "headrace data ingest", "headrace data ingest again, nothing new"


@dataclass(frozen=True)
class Way:
    """What one way of keeping the same pictures took."""

    name: str
    seconds: float
    peak_mb: float
    files: int
    """Files that it wrote: in DVC's cache, or the copies."""


def main(arguments: Sequence[str] | None = None) -> str:
    """Measures all ways, prints the report, writes it to `--out`, and returns its text."""
    parser = argparse.ArgumentParser(prog="benchmarks.picture_ingest", description=__doc__)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--disk", type=Path, help="a folder on the disk that is measured (default: that of temporary files)")
    parser.add_argument("--out", type=Path, help="file for the report (default: docs/benchmarks/picture-ingest.md)")
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(ingest_step(Project(options.step))))
        return ""
    with tempfile.TemporaryDirectory(prefix="headrace-pictures-", dir=options.disk) as folder:
        text = report(Path(folder), options.pictures)
    print(text)
    out = options.out or Path("docs/benchmarks/picture-ingest.md")
    out.write_text(text, encoding="utf-8")
    return text


def draw(folder: Path, count: int) -> int:
    """Writes small JPEG files of noise, no two of which are equal, in a folder for each class; returns their size."""
    rng, size = np.random.default_rng(0), 0
    for name in range(CLASSES):
        (folder / f"class-{name:02d}").mkdir(parents=True)
    for i in range(count):
        held = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(held, "JPEG", quality=60)
        (folder / f"class-{i % CLASSES:02d}" / f"{i:06d}.jpg").write_bytes(held.getvalue())
        size += held.tell()
    return size


def measure(root: Path) -> list[Way]:
    """Returns all ways for the pictures in `root/photos`."""
    copies = root / "copies"
    together = f"find photos -type f -print0 | sort -z | xargs -0 cat > {copies}/all"
    copies.mkdir()
    found = [
        _command("cat of all files into one", ["bash", "-c", together], root, copies),
        _command("cp -r", ["cp", "-r", "photos", f"{copies}/photos"], root, copies / "photos"),
    ]
    shutil.rmtree(copies)
    found += _ingests(root / "project", root / "photos")
    shutil.rmtree(root / "project")
    plain = root / "plain"
    plain.mkdir()
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=plain, check=True)
    (root / "photos").rename(plain / "photos")
    found.append(_command("dvc add of the folder", [*dvc, "add", "--quiet", "photos"], plain, plain / ".dvc" / "cache"))
    return found


def _command(name: str, command: list[str], root: Path, wrote: Path) -> Way:
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=root)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}")
    sys.stderr.write(f"{name}: {seconds:.1f} s\n")
    return Way(name, seconds, usage.ru_maxrss / 1024, files_in(wrote))


def _ingests(folder: Path, photos: Path) -> list[Way]:
    """Ingests the pictures twice, in processes of their own."""
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "many.yaml").write_text(RECIPE.replace("source: photos", f"source: {photos}"))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "requirements.lock").write_text("")
    found = []
    for name in (INGEST, AGAIN):
        command = [sys.executable, "-m", "benchmarks.picture_ingest", "--step", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        sys.stderr.write(f"{name}: {measured}\n")
        found.append(Way(name, measured["seconds"], measured["peak_mb"], files_in(folder / ".dvc" / "cache")))
    return found


def ingest_step(project: Project) -> dict[str, float]:
    """Ingests in this process; returns the seconds, without the start of Python, and the peak memory in MB."""
    from headrace.data.ingest import ingest
    from headrace.recipe.recipe import load_recipe

    recipe = load_recipe("many", project)
    started = time.perf_counter()
    ingest(recipe, project, lambda line: None)
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb()}


def files_in(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def report(root: Path, pictures: int) -> str:
    """Returns the page."""
    before = os.getloadavg()[0]
    size = draw(root / "photos", pictures)
    ways = measure(root)
    copied = next(way.seconds for way in ways if way.name == "cp -r")
    rows = [
        [
            way.name,
            f"{way.seconds:.1f}",
            f"{pictures / way.seconds:,.0f}",
            f"{way.seconds / copied:.2f} ×",
            f"{way.peak_mb:,.0f}",
            f"{way.files:,}",
        ]
        for way in ways
    ]
    written = f"""
Written by `python -m benchmarks.picture_ingest` on {hardware()}; load of the machine before {before:.1f}, after
{os.getloadavg()[0]:.1f}."""
    about = f"""
{pictures:,} JPEG files of {SIDE} × {SIDE} pixels, {size / pictures / 1e3:.1f} KB each and {size / 1e6:,.0f} MB together, in a
folder for each of {CLASSES} classes. All ways read the same files, which the kernel has in memory after they were written, and
write to the same disk. The ingest reads, checks and hashes every file, writes one Parquet file, validates it, and makes a
version of it in DVC; its seconds exclude the start of Python. The last column counts the files in DVC's cache, or copies."""
    head = ["way", "seconds", "pictures per second", "of `cp -r`", "peak, MB", "files written"]
    return "\n\n".join(["# Many pictures", wrap(written), section("Ingest", about, head, rows)]) + "\n"


if __name__ == "__main__":
    main()

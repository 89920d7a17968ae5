"""Projects for tests: the code of this checkout with two tiny recipes and their data."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from headrace.project import Project
from tests.paths import ROOT

CODE = (
    "headrace",
    "flows",
    "tasks",
    "bentos",
    "deploy",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "pyproject.toml",
    "prefect.yaml",
    "requirements.lock",
)

TINY_TABLE = """
name: tiny
task: classification
data:
  source: source.csv
  target: kind
  split: {test: 0.3, validation: 0.2, seed: 7}
expect:
  - {type: expect_column_values_to_be_between, column: length, min_value: -50, max_value: 50}
model: {name: mlp, hidden: [16]}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02}
gate:
  require: {accuracy: ">= 0.6"}
  beat_champion: {metric: accuracy}
serve: {replicas: 2}
"""

TINY_IMAGES = """
name: pictures
task: image-classification
data:
  source: pictures.csv
  target: label
  header: false
  columns: ["pixel[16]", label]
  image: [4, 4]
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: cnn, channels: [4], dropout: 0.0}
train: {epochs: 3, batch_size: 32, learning_rate: 0.02}
serve: {replicas: 1}
"""


def make_project(root: Path) -> Project:
    """Makes a clone in `root`, as git would, with the recipes `tiny` and `pictures` and their data."""
    for name in ("mlruns", "recipes"):
        (root / name).mkdir(parents=True)
    for name, (content, mode, modified) in _files_of_a_clone().items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        os.utime(path, ns=(modified, modified))
    git(root, "update-index", "--refresh")  # with the times and inodes of these files
    return Project(root)


@functools.cache
def _files_of_a_clone() -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time (ns) of all files of a project, those of its repository too; made once in each process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_clone(root)
        git(root, "init", "--quiet", "--initial-branch=main")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", "A clone")
        git(root, "repack", "-a", "-d", "--quiet")
        shutil.rmtree(root / ".git" / "hooks", ignore_errors=True)  # examples
        found = {}
        for path in sorted(root.rglob("*")):
            if path.is_file():
                stat = path.stat()
                found[str(path.relative_to(root))] = path.read_bytes(), stat.st_mode & 0o777, stat.st_mtime_ns
        return found


def _write_clone(root: Path) -> None:
    for name in CODE:
        source, place = ROOT / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    (root / "recipes").mkdir()
    (root / "recipes" / "tiny.yaml").write_text(TINY_TABLE)
    (root / "recipes" / "pictures.yaml").write_text(TINY_IMAGES)
    (root / "dvc.yaml").write_text(pipeline_of("tiny", "pictures"))
    table(400).to_csv(root / "source.csv", index=False)
    images(300).to_csv(root / "pictures.csv", index=False, header=False)


def pipeline_of(*recipes: str) -> str:
    """Returns the repository's dvc.yaml for other recipes."""
    head, ours, tail = re.split(r"((?:      [a-z-]+: \{task_type: .*\}\n)+)", (ROOT / "dvc.yaml").read_text())
    code = ours.splitlines()[0].partition(":")[2]
    return head + "".join(f"      {name}:{code}\n" for name in recipes) + tail


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def table(rows: int, seed: int = 1) -> pd.DataFrame:
    """Two numbers and a category that determine the label, which is wrong in one row of ten."""
    rng = np.random.default_rng(seed)
    length, width = rng.normal(0, 10, rows).round(3), rng.normal(0, 1, rows).round(4)
    colour = rng.choice(["red", "green", "blue"], rows)
    truth = (length / 10 + width + (colour == "red") > 0.3) ^ (rng.random(rows) < 0.1)
    return pd.DataFrame({"length": length, "width": width, "colour": colour, "kind": np.where(truth, "big", "small")})


def images(rows: int, seed: int = 1) -> pd.DataFrame:
    """Images of 4 × 4 pixels; the label is the bright half."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    pixels = rng.integers(0, 120, (rows, 16))
    pixels[:, :8] += (label == 0)[:, None] * 120
    pixels[:, 8:] += (label == 1)[:, None] * 120
    return pd.DataFrame(np.column_stack([pixels, label]))

"""A project of its own for each test that needs one: the code of this checkout, tiny recipes, free ports."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headrace.project import Project
from tests.bento_projects import built  # noqa: F401
from tests.docker_engine import docker_engine  # noqa: F401
from tests.paths import ROOT
from tests.ports import lease

pytest_plugins = ["tests.workers"]

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


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A fresh project, and the working folder inside it."""
    made = make_project(tmp_path / "clone")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Toy networks compute on one thread: several cost them more than they bring."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_project(root: Path) -> Project:
    """A clone in `root` as git would make it, with the recipes `tiny` and `pictures` and their data."""
    for name in CODE:
        source, place = ROOT / name, root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    (root / "mlruns").mkdir()
    (root / "recipes").mkdir()
    (root / "recipes" / "tiny.yaml").write_text(TINY_TABLE)
    (root / "recipes" / "pictures.yaml").write_text(TINY_IMAGES)
    (root / "dvc.yaml").write_text(pipeline_of("tiny", "pictures"))
    table(400).to_csv(root / "source.csv", index=False)
    images(300).to_csv(root / "pictures.csv", index=False, header=False)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "A clone")
    return Project(root)


def pipeline_of(*recipes: str) -> str:
    """The repository's dvc.yaml, for other recipes."""
    head, ours, tail = re.split(r"((?:      [a-z-]+: \{task_type: .*\}\n)+)", (ROOT / "dvc.yaml").read_text())
    code = ours.splitlines()[0].partition(":")[2]
    return head + "".join(f"      {name}:{code}\n" for name in recipes) + tail


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def table(rows: int, seed: int = 1) -> pd.DataFrame:
    """Two numbers and a category; the kind follows from them, with one row in ten told wrongly."""
    rng = np.random.default_rng(seed)
    length, width = rng.normal(0, 10, rows).round(3), rng.normal(0, 1, rows).round(4)
    colour = rng.choice(["red", "green", "blue"], rows)
    truth = (length / 10 + width + (colour == "red") > 0.3) ^ (rng.random(rows) < 0.1)
    return pd.DataFrame({"length": length, "width": width, "colour": colour, "kind": np.where(truth, "big", "small")})


def images(rows: int, seed: int = 1) -> pd.DataFrame:
    """4 × 4 pixels; the label is the half that is bright."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, rows)
    pixels = rng.integers(0, 120, (rows, 16))
    pixels[:, :8] += (label == 0)[:, None] * 120
    pixels[:, 8:] += (label == 1)[:, None] * 120
    return pd.DataFrame(np.column_stack([pixels, label]))


@pytest.fixture(scope="session")
def free_ports() -> Iterator[Callable[[], dict[str, str]]]:
    """Environment with ports nobody uses: each call takes others."""
    with contextlib.ExitStack() as held:

        def take() -> dict[str, str]:
            ports = held.enter_context(lease())
            names = ("DOOR_PORT", "DOOR_ADMIN_PORT", "MLFLOW_PORT", "PREFECT_PORT", "DESK_PORT")
            named = {f"HEADRACE_{name}": str(port) for name, port in zip(names, ports, strict=False)}
            return {**named, "HEADRACE_REPLICA_PORTS": f"[{ports[5]},{ports[-1]}]"}

        yield take


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the person who runs the tests do not reach them, except where CI says what engine to use."""
    for name in list(os.environ):
        if name.startswith("HEADRACE_") and name not in (
            "HEADRACE_BASE_IMAGE",
            "HEADRACE_REQUIRE_DOCKER",
            "HEADRACE_DOCKER_HOST",
        ):
            monkeypatch.delenv(name)

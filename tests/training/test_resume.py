"""Runs in processes of their own: killed at a step, they end as if never killed; repeated, they give the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from headrace.recipe.training import TrainConfig
from headrace.training import checkpoint
from headrace.training.checkpoint import Progress
from headrace.training.loop import TrainingRun, fit
from headrace.training.loss_weights import set_loss_weights
from tests.paths import ROOT
from tests.training.toys import Callbacks, image_model, image_rows, weights

EVERYTHING: dict[str, dict[str, Any]] = {
    "plain": {},
    "averages and augmentation": {
        "averaging": {"decay": 0.9},
        "augment": {"shift": 0.2, "scale": 0.2, "rotate": 20, "crop": 0.2},
        "schedule": "cosine",
        "warmup": 0.2,
    },
    "groups of batches": {
        "gradient_accumulation_steps": 3,
        "max_grad_norm": 0.5,
        "l1": 1e-4,
        "optimizer": "sgd",
        "label_smoothing": 0.1,
        "class_weights": "balanced",
    },
    "the mean of epochs": {"averaging": {"method": "swa", "start": 0.3}, "optimizer": "muon", "precision": "bfloat16"},
    "rmsprop": {"optimizer": "rmsprop", "momentum": 0.5, "schedule": "constant"},
}
EPOCHS, BATCHES = 3, 8


def run(config: TrainConfig, folder: Path, die_in: tuple[int, int] | None = None) -> tuple[str, Progress]:
    """A whole run, which leaves a checkpoint after every step; the process dies in the given epoch and batch.

    Returns:
        The sha256 of the weights, and how the run went.
    """

    def on_step(epoch: int, step: int) -> None:
        if die_in == (epoch, step):
            os.kill(os.getpid(), signal.SIGKILL)

    model, rows = image_model(config.seed, dropout=0.3, batch_norm=True), image_rows(BATCHES * 8 - 3)
    set_loss_weights(model, config, rows.target, [0, 1])
    always = {"EVERY_SECONDS": 0.0, "MAX_TIME_SHARE": float("inf")}
    with patch.multiple(checkpoint, **always):
        training = TrainingRun(folder / "checkpoint.pt", "run", Callbacks(on_step=on_step))
        progress = fit(model, rows, image_rows(20, seed=2), config, training)
    digest = hashlib.sha256()
    for name, value in weights(model).items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest(), progress


PROGRAM = """
import json, os, sys, torch
from pathlib import Path
from headrace.recipe.training import TrainConfig
from tests.training.test_resume import run
torch.set_num_threads(1)
for config, folder, die_in in json.loads(sys.argv[1]):
    child = os.fork()  # imports once for all
    if child == 0:
        digest, _ = run(TrainConfig.model_validate(config), Path(folder), tuple(die_in) if die_in else None)
        assert "torch._dynamo" not in sys.modules, "importing the tracer of torch.compile takes a second"
        os.write(1, f"{digest}\\n".encode())
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Job = tuple[TrainConfig, Path, list[int] | None]


def in_processes(*jobs: Job) -> list[str]:
    """Each job in a process of its own, one after the other; what they print, and then each one's exit status."""
    described = [(config.model_dump(mode="json"), str(folder), die_in) for config, folder, die_in in jobs]
    command = [sys.executable, "-c", PROGRAM, json.dumps(described)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def recipe(options: dict[str, Any], seed: int = 3) -> TrainConfig:
    fields = {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 0.02, "seed": seed, "device": "cpu"}
    return TrainConfig.model_validate(fields | options)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each set of options, with what a process left that was killed within the second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    places = {name: folder / name.replace(" ", "-") for name in EVERYTHING}
    jobs: list[Job] = [(recipe(options), places[name], [2, 5]) for name, options in EVERYTHING.items()]
    assert in_processes(*jobs) == [str(-signal.SIGKILL)] * len(jobs)
    return folder


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_process_killed_within_an_epoch_ends_as_one_never_killed(name: str, killed: Path, tmp_path: Path) -> None:
    config, place = recipe(EVERYTHING[name]), killed / name.replace(" ", "-")
    state = torch.load(place / "checkpoint.pt", weights_only=True)
    assert state["progress"]["epoch"] == 1 and state["progress"]["step"] in (3, 4)
    wanted, whole = run(config, tmp_path)
    found, resumed = run(config, place)
    assert found == wanted
    assert resumed.history == whole.history


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.parametrize("step", range(1, BATCHES + 1))
def test_a_kill_at_any_step_changes_nothing(step: int, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above at every step, in this process: an exception in place of the kill."""

    class Killed(Exception):
        pass

    def die(_: int, __: int) -> None:
        raise Killed

    config = recipe(EVERYTHING["averages and augmentation"] | {"gradient_accumulation_steps": 2})
    wanted, whole = run(config, tmp_path / "whole")
    monkeypatch.setattr(os, "kill", die)
    with pytest.raises(Killed):
        run(config, tmp_path, die_in=(epoch, step))
    torch.rand(5)
    found, resumed = run(config, tmp_path)
    assert (found, resumed.history) == (wanted, whole.history)


def test_the_same_recipe_gives_the_same_weights_in_fresh_processes(tmp_path: Path) -> None:
    names = ["averages and augmentation", "groups of batches"]
    first, again = (in_processes(*((recipe(EVERYTHING[n]), tmp_path / i / n, None) for n in names)) for i in "ab")
    assert first == again and len({*first}) == 3  # two sums, and 0 for a good end
    assert first[0] == run(recipe(EVERYTHING[names[0]]), tmp_path / "here")[0]
    assert first[0] != run(recipe(EVERYTHING[names[0]], seed=4), tmp_path / "other")[0]


def test_a_checkpoint_within_an_epoch_waits_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 1000.0)
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    checkpoints = checkpoint.Checkpoints(tmp_path / "c.pt", "run", {})
    clock[0] = 999.0
    assert not checkpoints.is_due()
    clock[0] = 1000.0
    assert checkpoints.is_due()
    monkeypatch.setattr(checkpoint, "write", lambda state, path: (path.write_bytes(b""), clock.__setitem__(0, 1100.0)))
    checkpoints.save(Progress())  # took 100 s: the next is due when that is a twentieth of the time
    clock[0] = 1100.0 + 1999.0
    assert not checkpoints.is_due()
    clock[0] = 1100.0 + 2000.0
    assert checkpoints.is_due()

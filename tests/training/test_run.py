"""The train stage: its files, its MLflow run, and what a kill or a failure leaves."""

from __future__ import annotations

import csv
import itertools
import os
import signal
from typing import Any

import pytest
import torch

from headrace.errors import TrainingError
from headrace.files import read_json
from headrace.processes import interrupt_on_signals
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.tracking.runs import client
from headrace.training.checkpoint import Progress
from headrace.training.reporting import RunReporter
from headrace.training.results import fingerprint_of
from headrace.training.run import train_model
from tests.bento_projects import another
from tests.exhaustive import exhaustive
from tests.training.killed_runs import killed

numbers = itertools.count()


def untrained(built: Project, like: str = "tiny", **train: Any) -> Recipe:
    recipe = another(built, f"training-{next(numbers)}", like, train=train)
    for path in (built.artifacts(recipe.name) / "train").iterdir():
        path.unlink()
    return recipe


def runs(recipe: Recipe, project: Project) -> list[Any]:
    store = client(project)
    experiment = store.get_experiment_by_name(recipe.name)
    return list(store.search_runs([experiment.experiment_id])) if experiment else []


def weights(recipe: Recipe, project: Project) -> bytes:
    return (project.artifacts(recipe.name) / "train" / "model.pt").read_bytes()


@pytest.mark.parametrize("like", ["tiny", "pictures"])
def test_curves_have_a_row_an_epoch_and_the_summary_counts(like: str, built: Project) -> None:
    recipe = untrained(built, like, epochs=4)
    train_model(recipe, built)
    out = built.artifacts(recipe.name) / "train"
    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate"]
    summary, counted = read_json(out / "summary.json"), read_json(built.artifacts(like) / "prepared" / "rows.json")
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert (summary["best_epoch"], summary["val_loss"]) == (int(best["epoch"]), float(best["val_loss"]))
    assert (summary["epochs"], summary["stopped_early"]) == (4, False)
    assert (summary["train_rows"], summary["validation_rows"]) == (counted["train"], counted["validation"])
    assert not (built.state / "checkpoints" / f"{recipe.name}.pt").exists()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(built: Project) -> None:
    recipes = [untrained(built, seed=seed) for seed in (3, 3, 4)]
    for recipe in recipes:
        train_model(recipe, built)
    one, again, other = (weights(recipe, built) for recipe in recipes)
    assert one == again != other


def test_the_weights_load_without_pickle(built: Project) -> None:
    state = torch.load(built.artifacts("tiny") / "train" / "model.pt", weights_only=True)
    assert all(value.device.type == "cpu" and torch.isfinite(value).all() for value in state.values())


def test_the_run_in_mlflow_has_every_epoch_and_the_weights(built: Project) -> None:
    recipe = untrained(built, epochs=3)
    train_model(recipe, built)
    (run,) = runs(recipe, built)
    assert run.info.status == "FINISHED"
    assert run.data.tags["device"] == "cpu" or torch.cuda.is_available()
    history = client(built).get_metric_history(run.info.run_id, "val_loss")
    rows = csv.DictReader((built.artifacts(recipe.name) / "train" / "curves.csv").open())
    assert [(p.step, pytest.approx(p.value, abs=1e-7)) for p in history] == [
        (int(r["epoch"]), float(r["val_loss"])) for r in rows
    ]


@pytest.mark.parametrize(
    ("file", "time"), [("{name}.pt", 3), exhaustive("curves.csv", 1)], ids=["between epochs", "between files"]
)
def test_a_killed_training_resumes_and_ends_as_one_never_killed(file: str, time: int, built: Project) -> None:
    never, recipe = untrained(built, epochs=5), untrained(built, epochs=5)
    train_model(never, built)
    killed(recipe, built, file.format(name=recipe.name), time)
    (cut,) = runs(recipe, built)
    assert cut.info.status == "RUNNING"
    train_model(recipe, built)
    for name in ("model.pt", "curves.csv", "summary.json"):
        made = [(built.artifacts(r.name) / "train" / name).read_bytes() for r in (never, recipe)]
        assert made[0] == made[1], name
    (run,) = runs(recipe, built)
    assert (run.info.run_id, run.info.status) == (cut.info.run_id, "FINISHED")
    assert [p.step for p in client(built).get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3, 4, 5]


def test_an_interrupted_training_is_closed_in_mlflow_and_continued(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, as after a cancellation in Prefect, or Ctrl-C."""
    recipe = untrained(built, epochs=5)

    on_epoch = RunReporter.on_epoch

    def interrupt(reporter: RunReporter, progress: Progress) -> None:
        on_epoch(reporter, progress)
        if progress.epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(RunReporter, "on_epoch", interrupt)
            interrupt_on_signals()
            train_model(recipe, built)
        interrupt_on_signals()  # the next training is another one
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (cut,) = runs(recipe, built)
    assert cut.info.status == "KILLED"
    train_model(recipe, built)
    (run,) = runs(recipe, built)
    assert (run.info.run_id, run.info.status) == (cut.info.run_id, "FINISHED")
    assert [p.step for p in client(built).get_metric_history(run.info.run_id, "train_loss")] == [1, 2, 3, 4, 5]
    train_model(recipe, built)  # the same training again: a run of its own
    assert [run.info.status for run in runs(recipe, built)] == ["FINISHED", "FINISHED"]


def test_a_training_that_fails_says_so_in_mlflow_and_leaves_no_weights(built: Project) -> None:
    recipe = untrained(built, learning_rate=1e30, optimizer="sgd", schedule="constant")
    with pytest.raises(TrainingError, match="loss became"):
        train_model(recipe, built)
    assert [run.info.status for run in runs(recipe, built)] == ["FAILED"]
    assert not (built.artifacts(recipe.name) / "train" / "model.pt").exists()
    with pytest.raises(TrainingError):  # again: a new run, not the failed one
        train_model(recipe, built)
    assert [run.info.status for run in runs(recipe, built)] == ["FAILED", "FAILED"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error_before_a_run_opens(built: Project) -> None:
    recipe = untrained(built, device="cuda")
    with pytest.raises(TrainingError, match="no CUDA GPU"):
        train_model(recipe, built)
    assert runs(recipe, built) == []


def test_a_fingerprint_names_data_and_settings_and_nothing_else(built: Project) -> None:
    recipe = untrained(built)
    prepared = built.artifacts(recipe.name) / "prepared"

    def of(name: str, **sections: dict[str, Any]) -> str:
        return fingerprint_of(another(built, f"{recipe.name}-{name}", "tiny", **sections), prepared, built.root)

    first = fingerprint_of(recipe, prepared, built.root)
    assert (
        fingerprint_of(another(built, f"{recipe.name}-approved", "tiny", gate={"approval": "manual"}), prepared, built.root)
        == first
    )
    assert (
        fingerprint_of(another(built, f"{recipe.name}-slow", "tiny", train={"learning_rate": 0.5}), prepared, built.root)
        != first
    )
    assert of("wide", model={"hidden": [17]}) != first
    rows = prepared / "validation.parquet"
    rows.write_bytes((prepared / "test.parquet").read_bytes())
    assert fingerprint_of(load_recipe(recipe.name, built), prepared, built.root) != first


@pytest.mark.exhaustive
def test_a_checkpoint_of_other_data_is_not_used(built: Project) -> None:
    recipe = untrained(built, epochs=3)
    killed(recipe, built, f"{recipe.name}.pt", 3)
    prepared = built.artifacts(recipe.name) / "prepared"
    (prepared / "train.parquet").write_bytes((prepared / "validation.parquet").read_bytes())
    train_model(recipe, built)
    assert read_json(built.artifacts(recipe.name) / "train" / "summary.json")["epochs"] == 3
    assert sorted(run.info.status for run in runs(recipe, built)) == ["FINISHED", "KILLED"]

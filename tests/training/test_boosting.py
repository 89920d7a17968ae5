"""The stages of recipes with boosted trees: files, MLflow run, equal bytes, answers of the service, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from headrace.errors import HeadraceError, RecipeError, TrainingError
from headrace.files import read_json
from headrace.models.schema import Schema
from headrace.pipeline.stages import STAGES
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe, parse_recipe
from headrace.task_types.lookup import task_type_for
from headrace.tracking.runs import client
from headrace.training import boosting
from headrace.training.boosting import boost
from headrace.training.loading import to_device
from headrace.training.run import train_model
from tests.bento_projects import fitted, make_recipe
from tests.bentos.app_requests import ask
from tests.projects import TINY_TABLE

CPU = torch.device("cpu")
LIBRARIES = ("lightgbm", "xgboost")


def runs_of(recipe: str, built: Project) -> list[Any]:
    experiment = client(built).get_experiment_by_name(recipe)
    assert experiment is not None
    return list(client(built).search_runs([experiment.experiment_id]))


def recipe_of(built: Project, name: str, model: dict[str, Any], **train: Any) -> Recipe:
    """A recipe of trees with its own copy of the prepared rows of `tiny`."""
    fields = yaml.safe_load((built.recipes / "tiny.yaml").read_text()) | {"name": name, "model": model, "train": train}
    (built.recipes / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    if not built.artifacts(name).exists():
        shutil.copytree(built.artifacts("tiny") / "prepared", built.artifacts(name) / "prepared")
    return load_recipe(name, built)


@pytest.fixture(scope="module", params=LIBRARIES)
def released(built: Project, request: pytest.FixtureRequest) -> Recipe:
    """A recipe whose stages from training on have run."""
    library = request.param
    recipe = recipe_of(built, f"trees-{library}", {"name": library, "early_stopping_rounds": 5}, calibrate="temperature")
    for stage in ("train", "export", "evaluate"):
        STAGES[stage](recipe, built)
    return recipe


def test_the_stages_write_the_files_of_every_recipe(released: Recipe, built: Project) -> None:
    train = built.artifacts(released.name) / "train"
    rows = list(csv.DictReader((train / "curves.csv").open()))
    assert list(rows[0]) == ["epoch", "train_loss", "val_loss", "val_accuracy", "learning_rate"]
    summary = read_json(train / "summary.json") or {}
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert (summary["best_epoch"], summary["val_loss"]) == (int(best["epoch"]), float(best["val_loss"]))
    assert summary["epochs"] == len(rows) == summary["best_epoch"] + 5 and summary["stopped_early"]
    assert summary["parameters"] > 10 and summary["deterministic"] and summary["temperature"] > 0
    metrics = read_json(built.artifacts(released.name) / "evaluation" / "metrics.json") or {}
    assert metrics["accuracy"] > 0.7 and "calibration_error" in metrics


def test_the_run_in_mlflow_has_every_round_and_the_settings(released: Recipe, built: Project) -> None:
    store = client(built)
    (run,) = runs_of(released.name, built)
    rows = list(csv.DictReader((built.artifacts(released.name) / "train" / "curves.csv").open()))
    history = store.get_metric_history(run.info.run_id, "val_loss")
    assert run.info.status == "FINISHED" and [point.step for point in history] == [int(row["epoch"]) for row in rows]
    assert run.data.params["model.learning_rate"] == "0.1" and run.data.params["model.early_stopping_rounds"] == "5"


def test_the_service_answers_and_explains_as_the_library(released: Recipe, built: Project) -> None:
    export = built.artifacts(released.name) / "export"
    app = PredictionApp()
    app.model = load(export)
    frame = pd.read_parquet(built.artifacts(released.name) / "prepared" / "test.parquet")
    known = {"length": 12.5, "width": 1.5, "colour": "red"}
    path = f"/v1/models/{released.name}"
    answer = ask(app, "POST", f"{path}/predict", json={"instances": [known, {**known, "colour": "never seen"}]})
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert found[0]["label"] == "big" and sum(found[0]["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)
    assert 0.0 <= found[1]["probabilities"]["big"] <= 1.0
    explained = ask(app, "POST", f"{path}/explain", json={"instance": known, "target": "big"}).json()
    assert explained["method"] == "Shapley values"
    total = explained["base_value"] + sum(explained["attributions"].values())
    assert total == pytest.approx(explained["value"], abs=1e-6) and len(frame) > 50
    gap = ask(app, "POST", f"{path}/predict", json={"instances": [{**known, "length": None}]})
    assert gap.status_code == 422 and "length" in gap.text  # no row of the table has a gap there


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_seed_gives_the_same_bytes_and_a_killed_run_those_too(
    library: str, built: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str) -> bytes:
        train_model(load_recipe(name, built), built)
        return (built.artifacts(name) / "train" / "model.pt").read_bytes()

    names = [f"same-{library}-{i}" for i in range(3)]
    for name, seed in zip(names, (3, 3, 4), strict=True):
        recipe_of(built, name, {"name": library, "rounds": 8, "subsample": 0.7}, seed=seed)
    calls = iter(range(100))

    def interrupt() -> None:
        if next(calls) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(boosting, "raise_if_interrupted", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_model(load_recipe(names[0], built), built)
    assert not (built.artifacts(names[0]) / "train" / "model.pt").exists()
    one, again, other = (trained(name) for name in names)
    assert one == again != other
    store = client(built)
    (run,) = runs_of(names[0], built)
    steps = [point.step for point in store.get_metric_history(run.info.run_id, "val_loss")]
    assert run.info.status == "FINISHED" and steps == list(range(1, 9))


# --- rows that are hard to learn from -----------------------------------------------------------------------------------


def fit(frame: pd.DataFrame, validation: pd.DataFrame, recipe: Recipe) -> Any:
    """Returns the trained model, and its answers for the validation rows."""
    task_type, schema = task_type_for(recipe), fitted(frame, recipe)
    model = task_type.module(recipe.model, schema).eval()
    train, held = (to_device(part, task_type, schema, recipe, CPU) for part in (frame, validation))
    progress = boost(model, train, held, recipe.model, recipe.train, schema.labels)  # type: ignore[arg-type]
    return model, progress, model(*held.inputs).numpy()


def numbers(rows: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(0, 1, rows), "b": rng.normal(0, 1, rows)})
    return frame.assign(y=np.where(frame["a"] > 0, "up", "down"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_class_with_one_row_is_learned_beside_the_others(library: str) -> None:
    frame = numbers()
    frame.loc[0, "y"] = "once"
    _, progress, answers = fit(frame, frame[1:60], make_recipe(model={"name": library, "rounds": 10}))
    assert answers.shape == (59, 3) and progress.best_epoch > 1
    np.testing.assert_allclose(answers.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("library", LIBRARIES)
def test_rows_that_no_split_tells_apart_give_the_frequencies(library: str) -> None:
    frame = pd.DataFrame({"a": [1.0] * 60, "y": ["yes"] * 45 + ["no"] * 15})
    _, progress, answers = fit(frame, frame, make_recipe(model={"name": library, "rounds": 200, "learning_rate": 0.5}))
    assert progress.epoch <= 200 and answers[:, 1] == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("library", LIBRARIES)
def test_class_weights_count(library: str) -> None:
    frame = pd.DataFrame({"a": [1.0] * 60, "y": ["yes"] * 45 + ["no"] * 15})
    train = {"class_weights": "balanced"}
    model = {"name": library, "rounds": 200, "learning_rate": 0.5, "early_stopping_rounds": None}
    balanced = frame[30:60]  # half of each class: the best round is that of equal probabilities
    _, _, answers = fit(frame, balanced, make_recipe(model=model, train=train))
    assert answers[:, 1] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(RecipeError, match="no row has the label 'yess'; did you mean 'yes'"):
        fit(frame, frame, make_recipe(model=model, train={"class_weights": {"yess": 3}}))


@pytest.mark.parametrize("objective", ["huber", "regression_l1", "reg:pseudohubererror", "reg:absoluteerror"])
def test_losses_of_a_regression(objective: str) -> None:
    frame = numbers().assign(y=lambda rows: 100 + 10 * rows["a"])
    library = "xgboost" if objective.startswith("reg:") else "lightgbm"
    recipe = make_recipe("regression", {"name": library, "rounds": 60, "objective": objective})
    _, progress, answers = fit(frame, frame, recipe)
    error = float(np.abs(answers - frame["y"]).mean())
    assert error < 3 and progress.history[progress.best_epoch - 1]["val_mae"] == pytest.approx(error, rel=0.01)


def test_too_many_rows_for_the_memory_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boosting, "free_memory", lambda: 1000)
    with pytest.raises(TrainingError, match=r"120 rows of 2 features take 0\.0 GB") as caught:
        fit(numbers(), numbers(), make_recipe(model={"name": "lightgbm"}))
    assert "use mlp" in str(caught.value)


def test_a_column_without_values_and_a_constant_target_are_refused_as_for_networks() -> None:
    with pytest.raises(HeadraceError, match="no training row has a value here"):
        fit(numbers().assign(a=np.nan), numbers(), make_recipe(model={"name": "lightgbm"}))
    with pytest.raises(HeadraceError, match="every training row has the same value, 1"):
        fit(numbers().assign(y=1.0), numbers(), make_recipe("regression", model={"name": "xgboost"}))


# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"epochs": 3}}, "train.epochs: applies to networks only, not to lightgbm; write it as model.rounds"),
        ({"train": {"batch_size": 128}}, "train.batch_size: applies to networks only, not to lightgbm; remove it"),
        ({"train": {"optimizer": "adamw"}}, "train.optimizer: applies to networks only"),
        ({"train": {"early_stopping": {"patience": 2}}}, "write it as model.early_stopping_rounds"),
        ({"train": {"learning_rate": 0.1}}, "write it as model.learning_rate"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing: applies to networks only"),
        ({"train": {"processes": 2}}, "train.processes: lightgbm trains in one process; remove it, and raise model.threads"),
        ({"train": {"start": "champion"}}, "train.start: lightgbm is trained from the start each time"),
        ({"train": {"device": "cuda"}}, "train.device: lightgbm trains on the CPU"),
        ({"task": "regression", "model": {"name": "xgboost", "interval": 0.9}}, "interval: xgboost predicts one value"),
        ({"task": "regression", "model": {"name": "lightgbm", "quantiles": [0.1, 0.5, 0.9]}}, "quantiles: lightgbm predicts"),
        ({"task": "regression", "data": {"target": ["width", "length"]}}, "lightgbm predicts one column, got 2"),
        ({"task": "multilabel-classification"}, "'lightgbm' cannot be used for 'multilabel-classification'; use one of mlp"),
        ({"data": {"text": {"column": "notes"}}}, "data.text: lightgbm reads no texts; remove it, or use mlp"),
        ({"model": {"name": "lightgbm", "objective": "huber"}}, "model.objective: applies to regression only"),
        ({"model": {"name": "lightgbm", "gamma": 1}}, "model.gamma: unknown field; known: "),
        ({"model": {"name": "xgboost", "n_estimators": 9}}, "model.n_estimators: unknown field; did you mean 'rounds'?"),
        ({"model": {"name": "xgboost", "max_depth": 0}}, "model.max_depth: "),
    ],
)  # fmt: skip
def test_what_trees_cannot_do_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    fields = yaml.safe_load(TINY_TABLE) | {"model": {"name": "lightgbm"}, "train": {}, "gate": {}}
    for name, value in changes.items():
        fields[name] = {**fields[name], **value} if name == "data" else value
    with pytest.raises(RecipeError) as caught:
        parse_recipe(yaml.safe_dump(fields), "recipes/tiny.yaml")
    assert said in str(caught.value)


def test_a_network_of_trees_needs_the_columns_of_a_table(tmp_path: Path) -> None:
    recipe = make_recipe(model={"name": "lightgbm"})
    schema = Schema.model_validate(json.loads(fitted(numbers(), recipe).model_dump_json()))
    model = task_type_for(recipe).module(recipe.model, schema)
    model.preprocess = torch.nn.Identity()
    with pytest.raises(TrainingError, match="lightgbm learns a class or a number from the columns of a table only"):
        boosting.trees_of(model, recipe.model)  # type: ignore[arg-type]

"""Boosted trees as a network: the served graph decides as the library does, for any row, and damage is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from headrace.errors import TrainingError
from headrace.models.boosted_trees import BoostedTrees, require_lightgbm, with_float32_thresholds
from headrace.models.onnx_inference import run_graph
from headrace.models.schema import Categorical, Schema, Shape
from headrace.models.tree_features import MOST_INDICATORS, TreeFeatures
from headrace.recipe.recipe import Recipe
from headrace.task_types.lookup import task_type_for
from headrace.training.boosting import boost
from headrace.training.loading import to_device
from tests.bento_projects import fitted, make_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LIBRARIES = ("lightgbm", "xgboost")


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Numbers with gaps, a number that float32 cannot tell apart, a boolean, categories and times."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(5, 2, rows),
            "wind": rng.normal(0, 1, rows),
            "stamp": 1.7e9 + rng.random(rows),
            "flag": rng.random(rows) < 0.5,
            "colour": rng.choice(["red", "green", "blue"], rows),
            "when": pd.to_datetime(rng.integers(1_500_000_000, 1_700_000_000, rows), unit="s"),
        }
    )
    frame.loc[::7, "wind"], frame.loc[::11, "colour"], frame.loc[::13, "when"] = np.nan, None, pd.NaT
    score = frame["size"] + frame["wind"].fillna(3.0) + 2.0 * (frame["colour"] == "red") + frame["when"].dt.hour.fillna(9) / 8
    frame["y"] = score + 3.0 * (frame["stamp"] % 1.0)
    return frame


def with_target(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    y = frame["y"]
    if target == "value":
        return frame.assign(y=np.exp(y / 4))
    bins = 2 if target == "two" else 3
    return frame.assign(y=pd.qcut(y, bins, labels=list("abc")[:bins]).astype(str))


class Trained:
    """Trees that were trained on a table, and rows that they have not seen."""

    def __init__(self, library: str, target: str) -> None:
        data: dict[str, Any] = {"times": ["when"]}
        data |= {"target_transform": "log"} if target == "value" else {}
        task = "regression" if target == "value" else "classification"
        self.recipe: Recipe = make_recipe(task, {"name": library, "rounds": 15}, **data)
        self.task_type = task_type_for(self.recipe)
        frame = with_target(table(900), target)
        train, validation, self.test = frame[:600], frame[600:750], frame[750:]
        self.schema: Schema = fitted(train, self.recipe)
        self.model = self.task_type.module(self.recipe.model, self.schema).eval()
        rows, held = (to_device(part, self.task_type, self.schema, self.recipe, CPU) for part in (train, validation))
        boost(self.model, rows, held, self.recipe.model, self.recipe.train, self.schema.labels)  # type: ignore[arg-type]

    def export(self, folder: Path) -> float:
        """Exports the trees; returns the largest difference that the export found."""
        self.contract = self.task_type.contract(self.schema, self.recipe, self.test.iloc[:1])
        self.path = folder / "model.onnx"
        found = self.task_type.export(self.model, self.schema, self.recipe, self.contract, self.test, folder)
        return found["largest_relative_difference"]

    def library_answers(self, frame: pd.DataFrame) -> Any:
        inputs = self.task_type.encode(frame, self.schema, self.recipe)
        return self.model(*(torch.from_numpy(array) for array in inputs.values())).numpy()

    def graph_answers(self, frame: pd.DataFrame) -> Any:
        return run_graph(self.path, self.task_type.feeds(frame, self.contract, self.recipe))


CASES = [("lightgbm", "two"), ("lightgbm", "three"), ("lightgbm", "value"), ("xgboost", "two"), ("xgboost", "three"),
         ("xgboost", "value")]  # fmt: skip


@pytest.mark.parametrize(("library", "target"), CASES)
def test_the_graph_decides_as_the_library_for_test_rows_and_for_edges(library: str, target: str, tmp_path: Path) -> None:
    trained = Trained(library, target)
    assert trained.export(tmp_path) < 1e-5
    edges = trained.task_type.synthetic_rows(trained.schema, trained.recipe, 2000, np.random.default_rng(1))
    assert edges is not None and edges["wind"].isna().any() and (edges["colour"] == "never seen before").any()
    for rows in (trained.test, edges):
        wanted, got = trained.library_answers(rows), trained.graph_answers(rows)
        assert got.shape == wanted.shape and np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    truth = trained.task_type.evaluate(trained.test, trained.graph_answers(trained.test), trained.schema, trained.recipe)
    assert truth.metrics.get("r2", truth.metrics.get("accuracy", 0.0)) > 0.6


@pytest.mark.parametrize("library", LIBRARIES)
def test_float32_features_at_the_thresholds_decide_as_the_library(library: str, tmp_path: Path) -> None:
    """Training values whose midpoints lie between two float32 numbers, and rows on both sides of each."""
    recipe = make_recipe("regression", {"name": library, "rounds": 5})
    near = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-23)
    frame = pd.DataFrame({"x": np.tile(near, 20), "y": np.tile(np.arange(64.0) % 7, 20)})
    task_type, schema = task_type_for(recipe), fitted(frame, recipe)
    schema = schema.model_copy(update={"numeric": [schema.numeric[0].model_copy(update={"wide": False})]})
    model = task_type.module(recipe.model, schema).eval()
    rows = to_device(frame, task_type, schema, recipe, CPU)
    boost(model, rows, rows, recipe.model, recipe.train, None)  # type: ignore[arg-type]
    contract = task_type.contract(schema, recipe, frame.iloc[:1])
    task_type.export(model, schema, recipe, contract, frame, tmp_path)
    wanted = model(rows.inputs[0]).numpy()
    assert len(np.unique(wanted)) > 5
    np.testing.assert_allclose(run_graph(tmp_path / "model.onnx", {"x": frame["x"].to_numpy()}), wanted, atol=1e-6)


def test_thresholds_are_rounded_down_to_float32_and_nothing_else_changes() -> None:
    text = "tree\ntree_sizes=100 200\nthreshold=0.1 1e300 -1e300 2.5\nleaf_value=0.1 0.2"
    first, threshold, last = with_float32_thresholds(text).split("\n")
    assert (first, last) == ("tree", "leaf_value=0.1 0.2")
    values = [float(value) for value in threshold.removeprefix("threshold=").split()]
    assert all(float(np.float32(value)) == value or np.isinf(value) for value in values)
    assert values[0] < 0.1 < float(np.nextafter(np.float32(values[0]), np.float32(1))) and values[3] == 2.5
    assert values[1] == float(np.finfo(np.float32).max) and values[2] == -np.inf


@pytest.mark.parametrize("library", LIBRARIES)
def test_weights_come_back_without_pickle_and_damage_is_found(library: str, tmp_path: Path) -> None:
    trained = Trained(library, "two")
    torch.save(trained.model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    again = trained.task_type.module(trained.recipe.model, trained.schema).eval()
    with pytest.raises(TrainingError, match="has no trees yet"):
        again.network.content()  # type: ignore[operator]
    again.load_state_dict(state)
    inputs = [torch.from_numpy(a) for a in trained.task_type.encode(trained.test, trained.schema, trained.recipe).values()]
    assert torch.equal(again(*inputs), trained.model(*inputs))
    state["network.booster"][1000] ^= 1
    again.load_state_dict(state)
    with pytest.raises(TrainingError, match=r"the trees of \w+ are damaged"):
        again(*inputs)
    assert isinstance(again.network, BoostedTrees) and trained.model.network.nodes() > 15  # type: ignore[operator]


def test_a_column_with_very_many_levels_is_one_feature() -> None:
    levels = [f"v{i:04}" for i in range(MOST_INDICATORS)]
    few, many = (Categorical(name="c", levels=levels[:n], nullable=False) for n in (2, MOST_INDICATORS))
    shape = Shape(cardinalities=(3,))
    index = torch.tensor([[0], [1], [2]])
    (indicators,) = TreeFeatures(Schema(shape=shape, categorical=[few]))(index)
    assert indicators.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    (order,) = TreeFeatures(Schema(shape=shape, categorical=[many]))(index)
    assert order.tolist() == [[0], [1], [2]]


def test_a_missing_library_of_the_system_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightGBM's loader is replaced: whether the system has OpenMP is outside our reach."""
    message = "libgomp.so.1: cannot open shared object file"

    class WithoutOpenMP:
        def find_spec(self, name: str, *rest: Any) -> None:
            if name == "lightgbm":
                raise OSError(message)

    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.setattr(sys, "meta_path", [WithoutOpenMP(), *sys.meta_path])
    with pytest.raises(TrainingError, match=message) as caught:
        require_lightgbm()
    assert "apt install libgomp1" in str(caught.value.hint)

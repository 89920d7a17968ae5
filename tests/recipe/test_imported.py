"""Recipes of models that others trained: what they may leave out, and what does not apply to them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from headrace.errors import RecipeError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_trained, parse_recipe


def parsed(**fields: Any) -> Recipe:
    recipe = {"name": "imp", "task": "classification", "model": {"source": "m.onnx"}, **fields}
    return parse_recipe(yaml.safe_dump(recipe), "recipes/imp.yaml")


def test_a_source_is_all_that_an_import_needs() -> None:
    recipe = parsed()
    assert recipe.imported is not None and recipe.imported.source == "m.onnx" and recipe.model.name == "imported"
    assert recipe.serve.replicas == 2 and recipe.imported == parsed(model={"name": "imported", "source": "m.onnx"}).imported
    assert parsed(task="regression", model={"source": "m.onnx", "targets": ["price"]}).data.target == "price"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "image-classification"}, "task: an imported model can have the tasks classification, regression"),
        ({"gate": {"require": {"accuracy": ">= 0.9"}}}, "gate.require: an imported model has no test rows"),
        ({"gate": {"beat_champion": {"metric": "accuracy"}}}, "gate.beat_champion: an imported model has no test rows"),
        ({"train": {"epochs": 3}}, "train: an imported model is not trained"),
        ({"search": {"space": {"train.epochs": [1, 2]}}}, "search: an imported model is not trained again"),
        ({"monitor": {"retrain": {}}}, "monitor.retrain: an imported model is not trained again"),
        ({"data": {"source": "rows.csv", "target": "kind"}}, "data: the rows of an imported model cannot be tested yet"),
        ({"model": {"source": "m.onnx", "sha256": "abc"}}, "model.sha256: String should match pattern"),
        ({"model": {"source": "m.onnx", "label": ["a", "b"]}}, "model.label: unknown field; did you mean 'labels'?"),
        ({"model": {"source": "m.onnx", "activation": "relu"}}, "model.activation: Input should be 'none', 'softmax' or"),
        ({"model": {"name": "imported"}}, "model.source: required field is missing"),
        ({"model": {"source": "m.onnx", "trust_remote_code": True}}, "model.trust_remote_code: unknown field"),
        ({"model": {"name": "mlp", "source": "m.onnx"}}, "model.source: unknown field"),
        (
            {"task": "regression", "model": {"source": "m", "labels": ["a", "b"]}},
            "model.labels: applies to classification only",
        ),
    ],
)
def test_what_does_not_apply_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(**fields)
    assert message in str(caught.value)


def test_commands_about_rows_and_training_say_that_there_are_none(project: Project) -> None:
    (project.recipes / "imp.yaml").write_text("name: imp\ntask: classification\nmodel: {source: m.onnx}\n")
    assert load_trained("tiny", project).name == "tiny"
    with pytest.raises(RecipeError, match="imp is a model that others trained: it has no rows and no training"):
        load_trained("imp", project)

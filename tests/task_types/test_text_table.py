"""Tables with a text beside their columns: parity with torch, the served answers, and explanations by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bentos.models.onnx_model import NotServable, load
from bentos.protocols.explain import ExplainRequest, _explained, explanation_for
from bentos.protocols.v2 import ModelTensors
from headrace.errors import RecipeError
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.runtime.tokenizer import PAD
from headrace.task_types.lookup import task_type_for
from tests.bento_projects import make_model
from tests.task_types.several_targets import LABELS, labelled, measured, one_column_each, recipe_text, texts_of

pytestmark = pytest.mark.usefixtures("one_thread")
TEXT = {"text": {"column": "note", "tokens": "words", "length": 12}}
TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "classification": ("team", {}),
    "regression": ("rent", {}),
    "several": (["rent", "rating"], {"model": {"name": "mlp", "hidden": [8], "text": {"encoder": "attention", "width": 16}}}),
    "multilabel-classification": (LABELS, {}),
}


def recipe_of(task: str) -> Recipe:
    target, sections = TASKS[task]
    text = recipe_text("regression" if task == "several" else task, target=target, data=TEXT, **sections)
    return parse_recipe(text, "recipes/several.yaml")


def table(task: str, rows: int = 60) -> pd.DataFrame:
    """Numbers, a category, a text that may be missing, and the targets."""
    frame, labels = labelled(rows)
    notes: list[str | None] = list(texts_of(labels))
    notes[3], notes[5] = None, ""
    frame["note"] = notes
    target, _ = TASKS[task]
    if task == "multilabel-classification":
        return one_column_each(frame, labels)
    if task == "classification":
        return frame.assign(team=["billing" if "paid" in given else "parcels" for given in labels])
    return frame.assign(**measured(rows)[[target] if isinstance(target, str) else target].to_dict("list"))


class Exported:
    """A model with random weights, written as the export stage would."""

    def __init__(self, task: str, folder: Path) -> None:
        self.recipe, self.folder, self.frame = recipe_of(task), folder, table(task)
        self.task_type = task_type_for(self.recipe)
        self.schema = self.task_type.fit(self.frame, self.recipe)
        self.torch = make_model(self.recipe, self.schema)
        contract = self.task_type.contract(self.schema, self.recipe, self.frame.iloc[:1])
        contract = contract.model_copy(update=self.torch.describe())
        self.parity = self.task_type.export(self.torch, self.schema, self.recipe, contract, self.frame, folder)
        assert self.schema.tokenizer is not None
        (folder / "tokenizer.json").write_text(self.schema.tokenizer)
        contract.write(folder / "contract.json")
        self.model = load(folder)

    def instances(self, rows: int) -> list[dict[str, Any]]:
        names = [field.name for field in self.model.contract.inputs]
        found: list[dict[str, Any]] = self.frame[names].head(rows).to_dict("records")
        return [{name: None if value != value else value for name, value in row.items()} for row in found]


@pytest.fixture(scope="module", params=list(TASKS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp("table"))


def test_graph_and_service_give_the_answers_of_torch(made: Exported) -> None:
    assert made.parity["largest_relative_difference"] <= made.parity["tolerance"]
    inputs = made.task_type.encode(made.frame, made.schema, made.recipe)
    assert list(inputs) == ["numeric", "categorical", "tokens"] and inputs["tokens"].shape == (60, 12)
    assert (inputs["tokens"][5] == PAD).all()
    with torch.inference_mode():
        expected = made.torch(*(torch.from_numpy(array) for array in inputs.values())).numpy().reshape(60, -1)
    outputs = made.task_type.answers(made.folder, made.frame, made.recipe)
    probabilities = outputs[:, 0] if outputs.ndim == 3 else outputs.reshape(60, -1)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3, atol=1e-5)
    feeds = made.model.to_feeds(made.instances(60))
    np.testing.assert_allclose(made.model.run(feeds).reshape(60, -1), probabilities, rtol=1e-5)
    alone = made.model.predict(made.instances(60)[7:8])
    assert str(alone[0].keys()) == str(made.model.predict(made.instances(8))[7].keys())


def test_the_text_is_a_field_and_no_category(made: Exported) -> None:
    *columns, text = made.model.contract.inputs
    assert [field.name for field in columns] == ["days", "amount", "channel"]
    assert (text.name, text.dtype, text.levels, text.tokens, text.nullable) == ("note", "string", None, 12, True)
    example = made.task_type.example(made.model.contract, made.folder)
    assert example["note"].dtype == np.int64 and example["note"].ndim == 2
    described = ModelTensors(made.model).reader.describe()
    assert described[-1] == {"name": "note", "datatype": "BYTES", "shape": [-1]}
    assert (
        ModelTensors(made.model).answer(made.model.to_feeds(made.instances(3))).keys()
        == made.model.predict(made.instances(1))[0].keys()
    )


def test_an_explanation_has_one_contribution_for_the_text(made: Exported) -> None:
    asked = ExplainRequest({**made.instances(1)[0], "note": "the invoice was delayed"}, baseline=made.instances(2)[1])
    explanation = explanation_for(made.model, asked)
    _, values = _explained(made.model, asked, explanation.outputs(0, explanation.rows))
    found = explanation.attribute(values)["attributions"]
    assert list(found) == ["days", "amount", "channel", "note"]
    assert sum(found.values()) == pytest.approx(values[-1] - values[0], abs=1e-3)


def test_a_graph_without_its_tokenizer_is_not_served(made: Exported, tmp_path: Path) -> None:
    for name in ("model.onnx", "contract.json"):
        (tmp_path / name).write_bytes((made.folder / name).read_bytes())
    with pytest.raises(NotServable, match="tokenizer cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("task", "sections", "message"),
    [
        ("classification", {"model": {"name": "mlp", "text": {"encoder": "mean"}}}, "model.text: needs a table with a text"),
        ("image-classification", {"model": {"name": "cnn"}, "data": {**TEXT, "image": [2, 2]}}, "applies to texts and tables"),
        ("regression", {"data": {"text": {"column": "y"}}}, "'y' is what is predicted"),
        ("regression", {"data": {**TEXT, "columns": ["x", "y"]}}, "text.column 'note' is not in columns"),
        (
            "regression",
            {"data": TEXT, "model": {"name": "mlp", "text": {"encoder": "attention", "width": 10}}},
            "width 10 cannot be divided into 4 heads",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(task: str, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe(recipe_text(task, target="y", **sections), "recipes/several.yaml")

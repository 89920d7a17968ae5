"""Texts to classes: what is learned from the training rows, and that graph and service give the answers of torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import yaml
from onnx import numpy_helper

from bentos.models.onnx_model import load
from headrace.errors import DataError, ExportError, RecipeError
from headrace.files import read_json
from headrace.models.onnx_inference import run_graph
from headrace.models.schema import Schema
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import PAD, UNKNOWN, Encoder
from headrace.task_types.lookup import task_type_of
from headrace.task_types.text_classification import LONGEST, TextClassification, edge_case_tokens
from tests.bento_projects import fitted, make_model, make_recipe, run_stages
from tests.exhaustive import exhaustive
from tests.projects import make_project

MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"name": "recurrent", "cell": "lstm", "embedding": 6, "hidden": 5, "layers": 2, "pooling": ["max", "last"]},
    "gru": {
        **{"name": "recurrent", "cell": "gru", "embedding": 6, "hidden": 5},
        **{"bidirectional": False, "skip": False, "pooling": ["mean", "attention"]},
    },
    "rotary": {"name": "attention", "width": 8, "heads": 2, "layers": 2, "positions": "rotary"},
    "learned": {"name": "attention", "width": 8, "heads": 2, "positions": "learned", "pooling": ["last", "attention"]},
}
GOOD, BAD, OTHER = ["fine", "lovely", "great"], ["awful", "broken", "late"], ["the", "plane", "seat", "was", "a", "bag", "my"]


pytestmark = pytest.mark.usefixtures("one_thread")


def reviews(rows: int, seed: int = 0) -> pd.DataFrame:
    """Texts of 1 to 12 words; one of them says which label."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(["bad", "good"], rows)
    texts = []
    for label in labels:
        words = rng.choice(OTHER, rng.integers(0, 12)).tolist()
        words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(GOOD if label == "good" else BAD)))
        texts.append(" ".join(words))
    return pd.DataFrame({"body": texts, "mood": labels})


def recipe_of(model: str = "gru", **text: Any) -> Recipe:
    return make_recipe(
        "text-classification", MODELS[model], target="mood", text={"column": "body", "tokens": "words", "length": 9, **text}
    )


class Exported:
    """A model with random weights, written as the export stage would."""

    def __init__(self, recipe: Recipe, folder: Path, frame: pd.DataFrame | None = None) -> None:
        self.recipe, self.folder = recipe, folder
        self.frame = reviews(60) if frame is None else frame
        self.task_type = task_type_of(recipe.task)
        self.schema = fitted(self.frame, recipe)
        self.model = make_model(recipe, self.schema)
        self.contract = self.task_type.contract(self.schema, recipe, self.frame.iloc[:1])
        folder.mkdir(parents=True, exist_ok=True)
        assert self.schema.tokenizer is not None
        self.parity = self.task_type.export(self.model, self.schema, recipe, self.contract, self.frame, folder)
        (folder / "tokenizer.json").write_text(self.schema.tokenizer)
        self.contract.write(folder / "contract.json")

    def torch_answers(self, frame: pd.DataFrame) -> Any:
        tokens = self.task_type.encode(frame, self.schema, self.recipe)["tokens"]
        with torch.inference_mode():
            return self.model(torch.from_numpy(tokens)).numpy()


@pytest.fixture(scope="module", params=["lstm", exhaustive("gru"), "rotary"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(recipe_of(request.param), tmp_path_factory.mktemp("text"))


# What is learned.


def test_the_vocabulary_is_that_of_the_training_rows() -> None:
    frame = reviews(60)
    schema = fitted(frame, recipe_of())
    assert schema.tokenizer is not None
    encoder = Encoder(schema.tokenizer)
    assert encoder.vocabulary == schema.shape.vocabulary == 4 + len(GOOD + BAD + OTHER)
    assert encoder.tokens("the zebra") != encoder.tokens("the the")
    assert encoder.tokens("zebra") == [UNKNOWN]
    assert (schema.labels, schema.shape.outputs, schema.shape.length) == (["bad", "good"], 2, 9)
    assert Schema.model_validate_json(schema.model_dump_json()) == schema


def test_rows_become_tokens_cut_and_filled_up() -> None:
    recipe, frame = recipe_of(), reviews(60)
    schema = fitted(frame, recipe)
    tokens = task_type_of(recipe.task).encode(frame, schema, recipe)["tokens"]
    assert tokens.shape == (60, 9) and tokens.dtype == np.int64
    words = [min(9, len(text.split())) for text in frame["body"]]
    assert (tokens != PAD).sum(axis=1).tolist() == words
    assert task_type_of(recipe.task).targets(frame, schema, recipe).tolist() == (frame["mood"] == "good").astype(int).tolist()


def test_nothing_is_the_empty_text_and_the_contract_takes_null_if_training_had_it() -> None:
    recipe, frame = recipe_of(), reviews(60)
    holed = frame.assign(body=frame["body"].where(frame.index != 3))
    task_type = task_type_of(recipe.task)
    for rows, nullable in ((frame, False), (holed, True)):
        schema = fitted(rows, recipe)
        assert task_type.contract(schema, recipe, rows.iloc[:1]).inputs[0].nullable is nullable
    assert not task_type.encode(holed, schema, recipe)["tokens"][3].any()


def test_values_that_are_not_text_are_read_as_text() -> None:
    recipe = recipe_of(tokens="characters")
    frame = pd.DataFrame({"body": [12.0, 3.5, 7.0, 21.0], "mood": ["a", "b", "a", "b"]})
    schema = fitted(frame, recipe)
    tokens = task_type_of(recipe.task).encode(frame, schema, recipe)["tokens"]
    assert (tokens != PAD).sum(axis=1).tolist() == [2, 3, 1, 2]


def test_one_class_one_token_and_a_wrong_column_are_errors() -> None:
    with pytest.raises(DataError, match="only one class"):
        fitted(reviews(20).assign(mood="good"), recipe_of())
    with pytest.raises(DataError, match="contain 1 distinct token") as caught:
        fitted(reviews(20).assign(body="same same"), recipe_of())
    assert caught.value.where == "column body" and caught.value.hint
    with pytest.raises(DataError, match="contain 0 distinct tokens"):
        fitted(reviews(20).assign(body=None), recipe_of())
    with pytest.raises(RecipeError, match="no column 'body'; did you mean 'bodi'"):
        fitted(reviews(20).rename(columns={"body": "bodi"}), recipe_of())


def test_a_text_task_without_a_text_column_is_the_recipes_mistake() -> None:
    with pytest.raises(RecipeError, match=r"data\.text: text tasks need the column"):
        make_recipe("text-classification", MODELS["gru"])
    with pytest.raises(RecipeError, match="'mlp' cannot be used for 'text-classification'; use one of recurrent, attention"):
        make_recipe("text-classification", {"name": "mlp"}, text={"column": "body"})


# The graph.


def test_the_graph_agrees_with_torch_at_every_length_alone_and_among_others(made: Exported) -> None:
    assert 0 <= made.parity["largest_relative_difference"] <= 1e-5
    rng = np.random.default_rng(3)
    for rows in (1, 33):
        for length in range(1, 10):
            tokens = rng.integers(4, made.schema.shape.vocabulary, (rows, length))
            for i, row in enumerate(tokens):
                row[i % (length + 1) or length :] = PAD
            with torch.inference_mode():
                wanted = made.model(torch.from_numpy(tokens)).numpy()
            got = run_graph(made.folder / "model.onnx", {"tokens": tokens})
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_graph_is_valid_and_any_length_fits(made: Exported) -> None:
    graph = onnx.load(made.folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    (tokens,) = graph.graph.input
    assert [d.dim_param for d in tokens.type.tensor_type.shape.dim] == ["rows", "length"]


def test_answers_for_a_table_are_those_of_torch(made: Exported) -> None:
    frame = reviews(50, seed=4)
    frame.loc[7, "body"] = ""
    frame.loc[8, "body"] = "zebra"
    got = made.task_type.answers(made.folder, frame, made.recipe)
    np.testing.assert_allclose(got, made.torch_answers(frame), rtol=1e-4, atol=1e-6)


def test_an_answer_does_not_depend_on_the_other_texts(made: Exported) -> None:
    frame = reviews(9, seed=5)
    together = made.task_type.answers(made.folder, frame, made.recipe)
    alone = [made.task_type.answers(made.folder, frame.iloc[[i]], made.recipe)[0] for i in range(9)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-4, atol=1e-6)


def test_the_registrys_example_is_the_sample_as_the_graph_takes_it(made: Exported) -> None:
    example = made.task_type.example(made.contract, made.folder)
    np.testing.assert_allclose(
        run_graph(made.folder / "model.onnx", example), made.torch_answers(made.frame.iloc[:1]), rtol=1e-4, atol=1e-6
    )


def test_the_service_gives_the_answers_of_torch(made: Exported) -> None:
    frame = reviews(20, seed=6)
    answers = load(made.folder).predict([{"text": text} for text in frame["body"]])
    for answer, wanted in zip(answers, made.torch_answers(frame), strict=True):
        assert answer["label"] == ["bad", "good"][wanted.argmax()]
        assert list(answer["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.exhaustive
def test_texts_of_one_token_and_a_length_of_one_are_exported(tmp_path: Path) -> None:
    """The example that is traced must not fix the length at one."""
    frame = pd.DataFrame({"body": ["fine", "awful", "late", "fine"] * 3, "mood": ["good", "bad", "bad", "good"] * 3})
    for name, length in (("gru", 9), ("learned", 1)):
        found = Exported(recipe_of(name, length=length), tmp_path / name, frame)
        (answer,) = load(tmp_path / name).predict([{"text": "fine late awful fine"}])
        assert set(answer["probabilities"]) == {"bad", "good"}
        np.testing.assert_allclose(
            list(answer["probabilities"].values()),
            found.torch_answers(pd.DataFrame({"body": ["fine late awful fine"], "mood": ["good"]}))[0],
            atol=1e-5,
        )


def test_a_graph_that_disagrees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrongly(graph: onnx.ModelProto, path: Path) -> None:
        bias = next(tensor for tensor in graph.graph.initializer if tensor.name.endswith("heads.each.0.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([0.1, 0], np.float32), bias.name))
        path.write_bytes(graph.SerializeToString())

    monkeypatch.setattr("headrace.task_types.base.save_graph", wrongly)
    with pytest.raises(ExportError, match="differs from torch by"):
        Exported(recipe_of("gru"), tmp_path)


def test_batches_at_the_edges_hold_the_shortest_the_longest_and_the_empty() -> None:
    schema = fitted(reviews(60), recipe_of())
    lengths = [(batch != PAD).sum(axis=1) for batch in edge_case_tokens(schema)]
    assert [batch.shape for batch in edge_case_tokens(schema)] == [(1, 1), (1, 9), (33, 1), (33, 9)]
    assert (lengths[-1].min(), lengths[-1].max()) == (0, 9)


# The contract and the scores.


def test_the_contract_says_what_is_read_and_what_is_refused() -> None:
    recipe, frame = recipe_of(), reviews(60)
    frame.loc[0, "body"] = "fine " * LONGEST
    contract = task_type_of(recipe.task).contract(fitted(frame, recipe), recipe, frame.iloc[:1])
    (field,) = contract.inputs
    assert (field.name, field.column, field.dtype, field.tokens, field.longest) == ("text", "body", "string", 9, LONGEST)
    assert contract.labels == ["bad", "good"] and contract.target == "mood"
    contract.to_feeds([contract.sample])  # also where the test row itself is too long


def test_scores_are_sliced_by_the_number_of_tokens() -> None:
    recipe, frame = recipe_of(), reviews(60)
    schema = fitted(frame, recipe)
    right = np.eye(2)[(frame["mood"] == "good").astype(int)]
    found = TextClassification().evaluate(frame, right, schema, recipe)
    assert found.metrics["accuracy"] == 1.0
    assert {one.column for one in found.slices} == {"tokens"} and sum(one.rows for one in found.slices) == 60
    assert max(int(one.value) for one in found.slices) == max(len(text.split()) for text in frame["body"])


# All stages.

TINY = """
name: moods
task: text-classification
data:
  source: moods.csv
  target: mood
  text: {column: body, tokens: words, length: 9}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: recurrent, embedding: 8, hidden: 6}
train: {epochs: 12, batch_size: 16, learning_rate: 0.03}
serve: {replicas: 1}
"""


@pytest.mark.parametrize("model", [exhaustive("recurrent"), "attention"])
def test_every_stage_takes_texts(model: str, tmp_path: Path) -> None:
    project: Project = make_project(tmp_path / "clone")
    reviews(260, seed=2).to_csv(project.root / "moods.csv", index=False)
    fields = yaml.safe_load(TINY)
    if model == "attention":
        fields["model"] = {"name": "attention", "width": 16, "heads": 2, "layers": 1}
    (project.recipes / "moods.yaml").write_text(yaml.safe_dump(fields))
    run_stages(project, "moods")
    artifacts = project.artifacts("moods")
    assert read_json(artifacts / "evaluation" / "metrics.json")["accuracy"] >= 0.9
    served = load(artifacts / "export")
    assert Contract.read(artifacts / "export" / "contract.json").served_by == "bentos.models.text:TextModel"
    (good, bad) = served.predict([{"text": "My seat was lovely"}, {"text": "a broken bag"}])
    assert (good["label"], bad["label"]) == ("good", "bad")

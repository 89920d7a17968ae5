"""Summarisation: what is learned and encoded, how answers are scored, and a tiny recipe from its data to the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from bentos.models.onnx_model import NotServable, load
from bentos.models.summaries import MAX_TEXTS, SummaryModel
from headrace.errors import DataError, RecipeError
from headrace.files import read_json
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.runtime.beam_search import SEARCH
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import END, PAD, START, Encoder
from headrace.runtime.violations import ContractViolation
from headrace.task_types import summarisation
from headrace.task_types.lookup import task_type_of
from headrace.task_types.summarisation import IGNORED, best_first_words, first_words, rouge_l
from tests.asgi import predict_body
from tests.bento_projects import fitted, make_recipe, run_stages
from tests.projects import make_project

NOUNS = ["mean", "sum", "rank", "median", "count", "name", "shape", "index"]
OTHER = ["of", "rows", "in", "axis", "with", "an", "optional", "table", "values", "by"]
RECIPE = """
name: lines
task: summarisation
data:
  source: lines.csv
  target: summary
  text: {column: body, vocabulary: 320, length: 12}
  split: {test: 0.2, validation: 0.1, seed: 7}
expect: []
model: {name: seq2seq, width: 16, heads: 2, encoder_layers: 1, decoder_layers: 1, beams: 2, dropout: 0.0}
train: {epochs: 6, batch_size: 16, learning_rate: 0.02, device: cpu}
gate: {require: {rouge_l: ">= 0.1"}, beat_champion: {metric: rouge_l}}
serve: {}
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def lines(rows: int, seed: int = 0) -> pd.DataFrame:
    """Bodies that name a noun somewhere; the summary says it."""
    rng = np.random.default_rng(seed)
    nouns = rng.choice(NOUNS, rows)
    bodies = []
    for noun in nouns:
        words = rng.choice(OTHER, rng.integers(2, 8)).tolist()
        words.insert(int(rng.integers(0, len(words) + 1)), str(noun))
        bodies.append("\n  ".join([" ".join(words[:3]), " ".join(words[3:])]))
    return pd.DataFrame({"name": "f", "body": bodies, "summary": [f"Compute the {noun}." for noun in nouns]})


def recipe_of(**text: Any) -> Recipe:
    return make_recipe(
        "summarisation", model={"name": "seq2seq", "width": 8, "heads": 2}, target="summary", text={"column": "body", **text}
    )


def test_targets_follow_the_tokens_of_the_summary() -> None:
    recipe, frame = recipe_of(vocabulary=300, length=8), lines(20)
    schema = fitted(frame, recipe)
    inputs, targets = (getattr(task_type_of(recipe.task), what)(frame, schema, recipe) for what in ("encode", "targets"))
    assert list(inputs) == ["source", "summary"] and inputs["source"].shape[1] <= 8
    encoder = Encoder(schema.tokenizer or "")
    for given, wanted, summary in zip(inputs["summary"], targets, frame["summary"], strict=True):
        tokens = encoder.tokens(summary)[: schema.shape.answer_length]
        assert given[given != PAD].tolist() == [START, *tokens]
        assert wanted[wanted != IGNORED].tolist() == [*tokens, END]
        assert ((given != PAD) == (wanted != IGNORED)).all()


def test_white_space_of_a_text_changes_nothing() -> None:
    recipe, frame = recipe_of(vocabulary=300), lines(20)
    schema, task_type = fitted(frame, recipe), task_type_of(recipe.task)
    spaced = frame.assign(body="\n\n" + frame["body"].str.replace(" ", "\t \n", regex=False) + "  ")
    np.testing.assert_array_equal(
        task_type.encode(frame, schema, recipe)["source"], task_type.encode(spaced, schema, recipe)["source"]
    )


def test_missing_summaries_are_refused_and_missing_texts_read_as_empty() -> None:
    recipe, frame = recipe_of(vocabulary=300), lines(20)
    with pytest.raises(DataError, match="1 of 20 rows have no summary") as caught:
        fitted(frame.assign(summary=frame["summary"].where(frame.index > 0)), recipe)
    assert caught.value.where == "column summary" and "drop_missing" in (caught.value.hint or "")
    schema = fitted(frame, recipe)
    encoded = task_type_of(recipe.task).encode(frame.assign(body=frame["body"].where(frame.index > 0)), schema, recipe)
    assert (encoded["source"][0] == PAD).all()


def test_a_recipe_without_a_text_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"data\.text"):
        make_recipe("summarisation", model={"name": "seq2seq"}, target="summary")
    with pytest.raises(RecipeError, match="width 8 cannot be divided into 3 heads"):
        make_recipe("summarisation", model={"name": "seq2seq", "width": 8, "heads": 3}, text={"column": "body"})


def test_rouge_l_is_the_one_worked_by_hand() -> None:
    """`the cat sat` in `the black cat that sat down`: a common subsequence of 3, precision 1, recall 1/2."""
    found = rouge_l(
        np.array(["The cat, sat", "dogs bark", "", "one two"]),
        np.array(["the black cat that sat down", "cats meow", "something", "one two"]),
    )
    assert found == pytest.approx([2 / 3, 0, 0, 1])


def test_the_baseline_takes_as_many_words_as_serve_it_best() -> None:
    texts = ["one two three four five six", "a b c d e f g"]
    assert first_words("  one \n two three", 2) == "one two"
    assert best_first_words(texts, ["one two three", "a b c"]) == 3
    assert best_first_words(texts, ["zero one two three four five", "a b c d e"]) == 5


def test_a_large_test_set_is_measured_on_rows_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summarisation, "MAX_TEST_ROWS", 5)
    recipe, frame = recipe_of(vocabulary=300), lines(21)
    schema, task_type = fitted(frame, recipe), task_type_of(recipe.task)
    truth = task_type.truth(frame, schema, recipe)
    assert truth[:, 0].tolist() == frame["summary"].iloc[[0, 5, 10, 15, 20]].tolist()
    evaluation = task_type.evaluate(frame, truth[:, 0], schema, recipe)
    assert evaluation.rows == 5 and "measured on 5 of 21 test rows, evenly spread" in evaluation.notes
    assert evaluation.metrics["rouge_l"] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def lines_project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Recipe]:
    """Every stage of a tiny recipe, run once."""
    project = make_project(tmp_path_factory.mktemp("lines") / "clone")
    (project.recipes / "lines.yaml").write_text(RECIPE)
    lines(240).to_csv(project.root / "lines.csv", index=False)
    recipe = run_stages(project, "lines")
    return project, recipe


@pytest.fixture(scope="module")
def served(lines_project: tuple[Project, Recipe]) -> SummaryModel:
    project, recipe = lines_project
    model = load(project.artifacts(recipe.name) / "export")
    assert isinstance(model, SummaryModel)
    return model


def test_the_evaluation_holds_the_gain_over_the_baseline_and_texts_to_read(lines_project: tuple[Project, Recipe]) -> None:
    project, recipe = lines_project
    artifacts = project.artifacts(recipe.name)
    metrics = read_json(artifacts / "evaluation" / "metrics.json")
    assert metrics["rouge_l_gain"] == pytest.approx(metrics["rouge_l"] - metrics["rouge_l_baseline"], abs=1e-5)
    assert metrics["rouge_l"] > 0.5 > metrics["rouge_l_baseline"]  # "Compute the ..." is easily learned
    evaluation = read_json(artifacts / "evaluation" / "evaluation.json")
    assert set(evaluation["samples"][0]) == {"text", "summary", "reference"}
    assert any("first" in note and "words" in note for note in evaluation["notes"])
    assert (artifacts / "evaluation" / "pictures" / "slices.png").is_file()


def test_scores_by_rows_are_those_of_the_metrics(lines_project: tuple[Project, Recipe]) -> None:
    project, recipe = lines_project
    artifacts = project.artifacts(recipe.name)
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:  # texts, and no pickle
        y_true, outputs = saved["y_true"], saved["outputs"]
    for name, value in read_json(artifacts / "evaluation" / "metrics.json").items():
        assert task_type_of(recipe.task).row_scores(name, y_true, outputs).mean() == pytest.approx(value, abs=1e-5)


def test_the_service_answers_as_the_evaluation_did(lines_project: tuple[Project, Recipe], served: SummaryModel) -> None:
    project, recipe = lines_project
    artifacts = project.artifacts(recipe.name)
    test = pd.read_parquet(artifacts / "prepared" / "test.parquet")
    with np.load(artifacts / "evaluation" / "predictions.npz") as saved:
        wanted = saved["outputs"].tolist()
    together = served.predict([{"text": text} for text in test["body"]])
    assert [answer["summary"] for answer in together] == wanted
    assert all(isinstance(answer["score"], float) and answer["score"] < 0 for answer in together)
    alone = served.predict([{"text": test["body"].iloc[3]}])[0]
    assert alone["summary"] == wanted[3] and alone["score"] == pytest.approx(together[3]["score"], abs=1e-4)


def test_the_contracts_sample_passes_and_the_registrys_example_fits_the_graph(lines_project: tuple[Project, Recipe]) -> None:
    import onnxruntime

    project, recipe = lines_project
    export = project.artifacts(recipe.name) / "export"
    contract = Contract.read(export / "contract.json")
    example = task_type_of(recipe.task).example(contract, export)
    session = onnxruntime.InferenceSession(export / "model.onnx", providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} == set(example)
    log_probabilities, present = session.run(None, example)
    assert log_probabilities.shape[:2] == example["tokens"].shape
    assert present.shape[5] == example["past"].shape[5] + 1


@pytest.mark.parametrize(
    "text",
    ["x", "龜" * 50, "\u200b\u0000\ufeff", "[EOS][BOS][PAD][UNK]", "word " * 5000, "y" * 90_000, "mean", "-" * 3000],
)
def test_any_text_is_answered(served: SummaryModel, text: str) -> None:
    (answer,) = served.predict([{"text": text}])
    assert isinstance(answer["summary"], str) and "[" not in answer["summary"].strip("[")
    json.dumps(answer, allow_nan=False)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"text": ""}, "instances.0.text"),
        ({"instances": [{"text": "mean"}, {"text": " \n\t "}]}, "instances.1.text"),
        ({"text": None}, "instances.0.text"),
        ({"text": 7}, "instances.0.text"),
        ({"text": ["mean"]}, "instances.0.text"),
        ({"text": "z" * 1_000_000}, "instances.0.text"),
        ({}, "instances.0.text"),
        ({"text": "mean", "beams": 4}, "instances.0.beams"),
        ({"instances": [{"text": "mean"}] * (MAX_TEXTS + 1)}, "instances"),
    ],
)
def test_a_value_that_is_not_text_is_refused_with_its_place(served: SummaryModel, body: Any, path: str) -> None:
    from headrace.runtime.http import Refused

    with pytest.raises(Refused) as caught:
        predict_body(served, json.dumps(body).encode())
    assert (caught.value.status, caught.value.details["path"]) == (422, path)


def test_half_a_surrogate_pair_is_refused(served: SummaryModel) -> None:
    with pytest.raises(ContractViolation, match="surrogate"):
        served.predict([{"text": "mean \ud800"}])


def test_a_folder_without_its_parts_is_not_servable(lines_project: tuple[Project, Recipe], tmp_path: Path) -> None:
    project, recipe = lines_project
    for part in (project.artifacts(recipe.name) / "export").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / SEARCH).write_text("{}")
    with pytest.raises(NotServable, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(NotServable):
        load(tmp_path)


def test_the_recipe_that_comes_with_the_house_is_sound() -> None:
    from tests.paths import ROOT

    fields = yaml.safe_load((ROOT / "recipes" / "summaries.yaml").read_text())
    assert Recipe.model_validate(fields).gate.require["rouge_l_gain"].startswith(">")

"""Text generation: windows and passages, what is refused, and a tiny recipe from its data to the service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from headrace.cli.inputs import from_fields, from_text
from headrace.errors import DataError, RecipeError
from headrace.evaluation.metrics import Evaluation
from headrace.files import read_json
from headrace.models.language import LanguageNetwork, MaskedNetwork
from headrace.project import Project
from headrace.recipe.recipe import Recipe, load_recipe
from headrace.release.decision import judge
from headrace.runtime.contract import Contract
from headrace.runtime.tokenizer import END, PAD, START, UNKNOWN, Encoder
from headrace.runtime.violations import ContractViolation
from headrace.task_types import text_generation
from headrace.task_types.lookup import task_type_of
from headrace.tracking.registry import Version
from tests.bento_projects import fitted, make_model, make_recipe, run_stages
from tests.paths import ROOT
from tests.projects import make_project
from tests.task_types.verses import recipe_of, rhymes

RECIPE = """
name: rhymes
task: text-generation
data:
  source: rhymes.csv
  target: text
  text: {column: text, tokens: characters, length: 24, lowercase: false}
  split: {test: 0.3, validation: 0.2, seed: 7}
expect: []
model: {name: gpt, width: 32, heads: 2, layers: 1, dropout: 0.0}
train: {epochs: 8, batch_size: 8, learning_rate: 0.01, device: cpu}
gate: {require: {bits_per_character: "< 3"}, beat_champion: {metric: bits_per_character}}
serve: {}
"""


pytestmark = pytest.mark.usefixtures("one_thread")


# -- rows to windows ---------------------------------------------------------------------------------------------------------


def test_windows_hold_each_text_from_its_start_and_targets_what_follows() -> None:
    recipe, frame = recipe_of(), pd.DataFrame({"text": ["abcab", "cc"]})
    schema = fitted(frame, recipe)
    a, b, c = Encoder(schema.tokenizer or "").tokens("abc")
    task_type = task_type_of(recipe.task)
    assert task_type.encode(frame, schema, recipe)["tokens"].tolist() == [
        [START, a, b, c],
        [a, b, PAD, PAD],
        [START, c, c, PAD],
    ]
    assert task_type.targets(frame, schema, recipe).tolist() == [[a, b, c, a], [b, END, PAD, PAD], [c, c, END, PAD]]


def test_a_text_that_fills_its_windows_needs_no_further_one() -> None:
    recipe, frame = recipe_of(), pd.DataFrame({"text": ["abcabca"]})
    schema = fitted(frame, recipe)
    windows, targets = (
        task_type_of(recipe.task).encode(frame, schema, recipe)["tokens"],
        task_type_of(recipe.task).targets(frame, schema, recipe),
    )
    assert windows.shape == targets.shape == (2, 4) and PAD not in windows and targets[-1, -1] == END


@pytest.mark.parametrize("bad", [None, "", 3])
def test_texts_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(DataError, match="1 of 2 texts are empty or missing"):
        fitted(pd.DataFrame({"text": ["abc", bad]}), recipe_of())


def test_what_cannot_generate_is_refused_with_what_mends_it() -> None:
    frame = pd.DataFrame({"text": ["abc abc"], "other": ["x"]})
    with pytest.raises(RecipeError, match="text cannot be generated from words"):
        fitted(frame, recipe_of(tokens="words"))
    with pytest.raises(RecipeError, match=r"set data\.target to text"):
        fitted(frame, recipe_of(target="other"))
    with pytest.raises(DataError, match="contain 1 distinct token"):
        fitted(pd.DataFrame({"text": ["aaaa"]}), recipe_of())


def test_a_classifier_is_refused_as_a_language_model(tmp_path: Path) -> None:
    recipe, frame = recipe_of(), rhymes(5)
    other = recipe.model_copy(update={"model": make_recipe("classification").model})
    with pytest.raises(RecipeError, match="does not build a LanguageNetwork"):
        task_type_of(recipe.task).module(other.model, fitted(frame, recipe))


# -- bits --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt", "recurrent-language"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, pd.DataFrame, LanguageNetwork, Path]:
    """Random weights, so that every token matters."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe, frame = recipe_of(model=request.param, length=6), rhymes(6)
    schema = fitted(frame, recipe)
    model = make_model(recipe, schema)
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.4)
    task_type = task_type_of(recipe.task)
    contract = task_type.contract(schema, recipe, frame)
    task_type.export(model, schema, recipe, contract, frame, folder)
    (folder / "tokenizer.json").write_text(schema.tokenizer or "")
    contract.write(folder / "contract.json")
    assert isinstance(model.network, LanguageNetwork)
    return recipe, frame, model.network, folder


@torch.inference_mode()
def test_bits_of_passages_are_those_of_torch_token_by_token(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, frame, network, folder = exported
    monkeypatch.setattr(text_generation, "PASSAGE", 10)
    task_type = task_type_of(recipe.task)
    found = task_type.answers(folder, frame, recipe)
    rows = task_type.truth(frame, fitted(frame, recipe), recipe)
    encoder = Encoder((folder / "tokenizer.json").read_text())
    wanted: list[list[float]] = []
    for text in frame["text"]:
        ids, states = [START, *encoder.tokens(text)], network.start(1)
        bits = []
        for stride in range(0, len(ids) - 1, 3):  # half of the context at a time; six tokens are seen at once
            part = torch.tensor([ids[:-1][stride : stride + 3]])
            room = 6 - part.shape[1]
            states = tuple(s[:, :, :, :, -room:] if s.ndim == 6 and s.shape[4] > room else s for s in states)
            logits, *states = network.step(part, *states)
            after = torch.tensor(ids[1:][stride : stride + 3])
            bits += (F.cross_entropy(logits[0], after, reduction="none") / np.log(2)).tolist()
        parts = [bits[i : i + 10] for i in range(0, len(text), 10)]
        wanted += [[sum(part), len(part)] for part in parts]
    assert found == pytest.approx(np.array(wanted), rel=1e-4)
    assert len(rows) == len(found) and np.bincount(rows, found[:, 1]).tolist() == frame["text"].str.len().tolist()


def test_metrics_count_characters_for_any_tokens(exported: Any) -> None:
    recipe, frame, _, folder = exported
    task_type, schema = task_type_of(recipe.task), fitted(frame, recipe)
    outputs = task_type.answers(folder, frame, recipe)
    found = task_type.evaluate(frame, outputs, schema, recipe)
    assert found.metrics["bits_per_character"] == pytest.approx(outputs[:, 0].sum() / frame["text"].str.len().sum())
    assert {s.value for s in found.slices} == set(frame["title"]) and {s.column for s in found.slices} == {"title"}


def test_characters_that_are_not_in_training_texts_are_noted() -> None:
    recipe, frame = recipe_of(), rhymes(5)
    schema = fitted(frame, recipe)
    strange = pd.DataFrame({"text": ["the mill ☃☃"]})
    assert (task_type_of(recipe.task).encode(strange, schema, recipe)["tokens"] == UNKNOWN).sum() == 2
    notes = task_type_of(recipe.task).evaluate(strange, np.array([[9.0, 11.0]]), schema, recipe).notes
    assert notes == ["2 characters are in no training text: bits_per_character does not count which one it is"]


def test_pieces_encode_every_text_and_lower_case_is_noted() -> None:
    recipe, frame = recipe_of(tokens="pieces", vocabulary=300, lowercase=True), rhymes(5)
    schema = fitted(frame, recipe)
    strange = pd.DataFrame({"text": ["the mill ☃☃"]})
    assert UNKNOWN not in task_type_of(recipe.task).encode(strange, schema, recipe)["tokens"]
    (note,) = task_type_of(recipe.task).evaluate(strange, np.array([[9.0, 11.0]]), schema, recipe).notes
    assert "lower case" in note


def test_the_registrys_example_fits_the_graph(exported: Any) -> None:
    recipe, _, network, folder = exported
    example = task_type_of(recipe.task).example(Contract.read(folder / "contract.json"), folder)
    states = ["remembered", "read", *network.row_states] if isinstance(network, MaskedNetwork) else network.states
    assert set(example) == {"tokens", *states} and example["tokens"].shape == (1, 1)
    onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]).run(None, example)


# -- all stages --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rhymes_project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Recipe]:
    """Every stage of a tiny recipe, run once."""
    project = make_project(tmp_path_factory.mktemp("rhymes") / "clone")
    (project.recipes / "rhymes.yaml").write_text(RECIPE)
    rhymes(60).to_csv(project.root / "rhymes.csv", index=False)
    recipe = run_stages(project, "rhymes")
    return project, recipe


def test_the_evaluation_holds_bits_and_texts_to_read(rhymes_project: tuple[Project, Recipe]) -> None:
    project, recipe = rhymes_project
    evaluated = project.artifacts(recipe.name) / "evaluation"
    found = Evaluation.from_dict(read_json(evaluated / "evaluation.json"))
    assert found.metrics["bits_per_character"] < 3
    assert found.samples[0]["prompt"] == "" and len(found.samples) == 3
    assert all(sample["text"] for sample in found.samples)
    assert {path.name for path in (evaluated / "pictures").iterdir()} >= {"slices.png", "curves.png"}


def test_the_gate_compares_passage_by_passage(rhymes_project: tuple[Project, Recipe], tmp_path: Path) -> None:
    """Against a champion whose weights are noise the candidate is better; against itself it is the same."""
    project, recipe = rhymes_project
    export = project.artifacts(recipe.name) / "export"
    candidate = Version("rhymes", "2", "run", export, {})
    same = judge(recipe, candidate, Version("rhymes", "1", "run", export, {}), project)
    assert same.same_model
    task_type, frame = task_type_of(recipe.task), rhymes(60)
    schema = fitted(frame, recipe)
    contract = Contract.read(export / "contract.json")
    task_type.export(make_model(recipe, schema), schema, recipe, contract, frame, tmp_path)
    (tmp_path / "tokenizer.json").write_text(schema.tokenizer or "")
    contract.write(tmp_path / "contract.json")
    verdict = judge(recipe, candidate, Version("rhymes", "1", "run", tmp_path, {}), project)
    assert verdict.passed and verdict.comparison is not None and verdict.comparison.metric == "bits_per_character"
    assert verdict.comparison.promoted


def test_the_service_writes_what_the_evaluation_wrote_whole_and_streamed(rhymes_project: tuple[Project, Recipe]) -> None:
    project, recipe = rhymes_project
    artifacts = project.artifacts(recipe.name)
    sample = read_json(artifacts / "evaluation" / "evaluation.json")["samples"][1]
    app = PredictionApp()
    app.model = load(artifacts / "export")

    async def ask(payload: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/models/rhymes/predict", json=payload)

    payload = {"prompt": sample["prompt"], "seed": recipe.train.seed}
    whole = asyncio.run(ask(payload)).json()["predictions"][0]
    assert whole["text"] == sample["text"]
    streamed = asyncio.run(ask({**payload, "stream": True}))
    events = [json.loads(line.removeprefix("data: ")) for line in streamed.text.rstrip("\n").split("\n\n")]
    assert "".join(event["text"] for event in events) == sample["text"]
    assert (events[-1]["finish_reason"], events[-1]["tokens"]) == (whole["finish_reason"], whole["tokens"])


def test_a_person_gives_a_prompt_as_a_text_or_with_fields(rhymes_project: tuple[Project, Recipe]) -> None:
    project, recipe = rhymes_project
    model = load(project.artifacts(recipe.name) / "export")
    (greedy,) = model.predict(from_fields(["prompt=the mill", "temperature=0", "max_tokens=8"], model.contract))
    assert greedy["tokens"] == 8 and len(greedy["text"]) == 8
    (answer,) = model.predict(from_text("the mill", model.contract))
    assert answer["text"]
    with pytest.raises(ContractViolation, match=r"instances.0.prompt: expected at most 24 tokens, got 25 tokens"):
        model.predict([{"prompt": "a" * 25}])


@pytest.mark.parametrize("name", ["shakespeare", "shakespeare-gpt"])
def test_the_recipes_that_come_with_the_house_are_sound(name: str) -> None:
    recipe = load_recipe(name, Project(ROOT))
    assert recipe.task == "text-generation" and recipe.gate.require
    assert yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())["name"] == name

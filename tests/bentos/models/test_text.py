"""A served model of texts: every text is answered or refused with the field at fault, in process and over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bentos.app import PredictionApp
from bentos.models.onnx_model import NotServable, load
from bentos.models.text import TextModel
from headrace.runtime import tokenizer as text_module
from headrace.runtime.contract import Contract, ContractViolation, InputField
from headrace.runtime.tokenizer import PAD, run_by_length
from headrace.task_types.vocabulary import learn_vocabulary

LONGEST = 1000


def word_counter(folder: Path, nullable: bool = False, length: int = 6) -> Path:
    """Two classes: logits are how often `good` and how often `bad` stand among the first `length` words of a text."""
    config: Any = SimpleNamespace(column="text", tokens="words", vocabulary=50, length=length, lowercase=True, replace={})
    tokenizer = learn_vocabulary(["good good bad bad plane plane"], config)
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    counted = np.array([vocabulary["good"], vocabulary["bad"]], np.int64).reshape(1, 1, 2)
    nodes = [
        helper.make_node("Unsqueeze", ["tokens", "last"], ["single"]),
        helper.make_node("Equal", ["single", "counted"], ["found"]),
        helper.make_node("Cast", ["found"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones", "middle"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
        numpy_helper.from_array(counted, "counted"),
    ]
    graph = helper.make_graph(
        nodes,
        "word_counter",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "length"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "tokenizer.json").write_text(tokenizer)
    Contract(
        model="moods",
        task="text-classification",
        output="probabilities",
        labels=["up", "down"],
        target="mood",
        inputs=[InputField(name="text", dtype="string", nullable=nullable, longest=LONGEST, tokens=length)],
        sample={"text": "Good plane"},
        served_by="bentos.models.text:TextModel",
    ).write(folder / "contract.json")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> TextModel:
    found = load(word_counter(tmp_path))
    assert isinstance(found, TextModel)
    return found


def up(*counts: int) -> float:
    """Softmax of the counts of `good` and `bad`."""
    good, bad = np.exp(counts)
    return float(good / (good + bad))


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("good plane", (1, 0)),
        ("Good, bad. GOOD!", (2, 1)),
        ("bad", (0, 1)),
        ("", (0, 0)),
        (" \n\t ", (0, 0)),
        ("zebra zebra", (0, 0)),
        ("👍🏽 🐢 żółw 漢字 good", (1, 0)),
        ("good\0bad", (0, 0)),  # the null letter parts no words
        ("[PAD] good", (1, 0)),
        ("plane plane plane plane plane plane bad", (0, 0)),  # beyond what is read
        ("ｇｏｏｄ", (1, 0)),  # wide letters, by NFKC
    ],
)
def test_a_text_is_answered(model: TextModel, text: str, counts: tuple[int, int]) -> None:
    (answer,) = model.predict([{"text": text}])
    assert answer["probabilities"]["up"] == pytest.approx(up(*counts), abs=1e-6)


def test_texts_of_any_lengths_keep_their_order(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "TOKENS_PER_RUN", 12)
    texts = ["good " * (i % 7) + "plane" for i in range(60)]
    answers = model.predict([{"text": text} for text in texts])
    wanted = [up(min(i % 7, 6), 0) for i in range(60)]
    assert [answer["probabilities"]["up"] for answer in answers] == pytest.approx(wanted, abs=1e-6)


def test_many_short_texts_are_all_answered(model: TextModel) -> None:
    assert len(model.predict([{"text": "good"}] * 3000)) == 3000


def test_no_run_holds_more_tokens_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "TOKENS_PER_RUN", 10)
    shapes: list[tuple[int, ...]] = []

    def sums(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        shapes.append(tokens.shape)
        totals: NDArray[np.int64] = tokens.sum(axis=1)
        return totals

    rows = [[5] * n for n in (3, 0, 12, 1, 4, 3, 0, 2)]
    assert run_by_length(rows, sums).tolist() == [5 * len(row) for row in rows]
    assert shapes[-1] == (1, 12) and all(rows * columns <= 10 for rows, columns in shapes[:-1])
    assert PAD == 0  # so that filling up adds nothing to the sums


@pytest.mark.parametrize(
    ("instance", "path"),
    [
        ({"text": None}, "instances.0.text"),
        ({"text": 7}, "instances.0.text"),
        ({"text": ["good"]}, "instances.0.text"),
        ({"text": "good " * 200 + "x"}, "instances.0.text"),
        ({"text": "\ud83d"}, "instances.0.text"),
        ({}, "instances.0.text"),
        ({"text": "good", "topic": "x"}, "instances.0.topic"),
        ("good", "instances.0"),
    ],
)
def test_what_is_no_text_is_refused(model: TextModel, instance: Any, path: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        model.predict([instance])
    assert caught.value.path == path


def test_null_is_the_empty_text_where_the_contract_says_so(tmp_path: Path) -> None:
    model = load(word_counter(tmp_path, nullable=True))
    assert model.predict([{"text": None}]) == model.predict([{}]) == model.predict([{"text": ""}])


def ask(model: TextModel, body: bytes) -> httpx.Response:
    app = PredictionApp()
    app.model = model

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.post("/v1/models/moods/predict", content=body, headers={"content-type": "application/json"})

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps({"text": "good plane"}).encode(), 200),
        (json.dumps({"instances": [{"text": "👍"}, {"text": ""}]}).encode(), 200),
        (json.dumps({"text": None}).encode(), 422),
        (json.dumps({"text": "a" * 1_000_000}).encode(), 422),
        (b'{"text": "\\ud800"}', 400),  # half a surrogate pair is no JSON to the parser
        (b'{"text": "\xff"}', 400),
    ],
)
def test_no_text_makes_the_server_fail(model: TextModel, body: bytes, status: int) -> None:
    response = ask(model, body)
    assert response.status_code == status, response.text
    if status == 422:
        assert response.json()["error"]["path"] == "instances.0.text"


@pytest.mark.parametrize("broken", ["missing", "no tokenizer"])
def test_a_model_without_its_tokenizer_is_not_served(broken: str, tmp_path: Path) -> None:
    folder = word_counter(tmp_path)
    (folder / "tokenizer.json").unlink() if broken == "missing" else (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(NotServable, match="tokenizer"):
        load(folder)


def test_a_contract_without_one_text_is_not_served(tmp_path: Path) -> None:
    folder = word_counter(tmp_path)
    contract = Contract.read(folder / "contract.json")
    other = contract.model_copy(update={"inputs": [InputField(name="text", dtype="string")]})
    other.write(folder / "contract.json")
    with pytest.raises(NotServable, match="tokens"):
        load(folder)

"""A served model of texts: every text is answered or refused with the field at fault, in process and over HTTP."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from bentos.app import PredictionApp
from bentos.models.onnx_model import NotServable, load
from bentos.models.text import TextModel
from headrace.runtime import tokenizer as text_module
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import PAD, run_by_length
from headrace.runtime.violations import ContractViolation
from tests.bentos.models.word_counter import up, word_counter


@pytest.fixture
def model(tmp_path: Path) -> TextModel:
    found = load(word_counter(tmp_path))
    assert isinstance(found, TextModel)
    return found


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


def test_no_batch_holds_more_tokens_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_values_that_are_not_text_are_refused(model: TextModel, instance: Any, path: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        model.predict([instance])
    assert caught.value.path == path


def test_null_is_the_empty_text_if_the_contract_allows_it(tmp_path: Path) -> None:
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
        (b'{"text": "\\ud800"}', 400),  # the parser refuses half a surrogate pair
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

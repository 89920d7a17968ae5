"""OpenAI's completions, checked with OpenAI's own client; unsupported parameters that would change the answer are refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bentos.app import PredictionApp
from bentos.protocols.openai import MAX_CHOICES
from bentos.scheduling.continuous import MAX_BATCH_TEXTS
from tests.bentos.live_app import live_app
from tests.tiny_models import image_model, language_model

LONG: dict[str, Any] = {"model": "letters", "prompt": "b", "temperature": 10, "max_tokens": 9000, "seed": 5}


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PredictionApp, str]]:
    with live_app(language_model(tmp_path_factory.mktemp("letters"))) as live:
        yield live


@pytest.fixture(scope="module")
def client(letters: tuple[PredictionApp, str]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{letters[1]}/v1", api_key="any", max_retries=0)


def test_a_completion(client: openai.OpenAI) -> None:
    found = client.completions.create(model="letters", prompt="a", temperature=0)
    (choice,) = found.choices
    assert (choice.text, choice.finish_reason, choice.index) == ("bc ", "stop", 0)
    assert found.object == "text_completion" and found.id.startswith("cmpl-")
    assert found.system_fingerprint == "letters@0"
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (1, 4, 5)


def test_a_chat_is_completed(client: openai.OpenAI, letters: tuple[PredictionApp, str]) -> None:
    found = client.chat.completions.create(
        model="letters", messages=[{"role": "user", "content": "ba"}], temperature=0, max_completion_tokens=2
    )
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "bc", "length")
    assert found.object == "chat.completion" and found.usage is not None and found.usage.prompt_tokens == 2
    parts: Any = [
        {"role": "system", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "user", "content": "a"},
    ]
    found = client.chat.completions.create(model="letters", messages=parts, temperature=0)
    assert found.choices[0].message.content == "bc " and found.usage is not None and found.usage.prompt_tokens == 4


def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model="letters", prompt="a", temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "bc "
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
    assert len(chunks) == 5 and len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a"}]
    asked: dict[str, Any] = {"model": "letters", "messages": messages, "temperature": 2, "max_tokens": 20, "seed": 7}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason in ("stop", "length") and all(chunk.usage is None for chunk in chunks)


def test_several_prompts_and_choices_come_in_order(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "letters", "prompt": ["a", "b"], "n": 3, "temperature": 3, "max_tokens": 12, "seed": 4}
    found = client.completions.create(**asked)
    assert [choice.index for choice in found.choices] == list(range(6))
    alone = [
        client.completions.create(**{**asked, "prompt": prompt, "n": 1, "seed": 4 + i}).choices[0].text
        for prompt in "ab"
        for i in range(3)
    ]
    assert [choice.text for choice in found.choices] == alone
    assert found.usage is not None and found.usage.prompt_tokens == 2
    streamed = [""] * 6
    for chunk in client.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == alone


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "letters", "prompt": "a", "temperature": 0, "echo": True}
    assert client.completions.create(**asked).choices[0].text == "abc "
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == "abc "


@pytest.mark.parametrize(("stop", "text"), [("c", "b"), (["x", "c", " "], "b"), (["c ", "bc"], ""), ([], "bc "), ("", "bc ")])
def test_a_text_ends_before_its_first_stop_sequence(client: openai.OpenAI, stop: Any, text: str) -> None:
    asked: dict[str, Any] = {"model": "letters", "prompt": "a", "temperature": 0, "stop": stop}
    assert client.completions.create(**asked).choices[0].text == text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": "abcab"}, "prompt", "context_length_exceeded"),
        ({"prompt": 7}, "prompt", "invalid_value"),
        ({"prompt": [1, 2]}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
        ({"max_tokens": 10_001}, "max_tokens", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 2}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": MAX_CHOICES + 1}, "n", "invalid_value"),
        ({"n": 8, "prompt": ["a"] * 5}, "instances", "invalid_value"),
        ({"stop": ["a"] * 5}, "stop", "invalid_value"),
        ({"stop": "a" * 101}, "stop", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_value"),
        ({"seed": "x"}, "seed", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"stream_options": {"include_usage": 3}}, "stream_options", "invalid_value"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"temprature": 1}, "temprature", "unknown_parameter"),
    ],
)
def test_unsupported_parameters_are_refused_as_openai_does(client: openai.OpenAI, fields: Any, param: str, code: str) -> None:
    asked = {"prompt": "a", **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="letters", prompt=asked.pop("prompt"), extra_body=asked)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": [{"type": "output_text", "text": "a"}]}]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_an_unsupported_chat_is_refused(client: openai.OpenAI, fields: Any, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="letters", messages=body.pop("messages"), extra_body=body)
    assert caught.value.param == param


def test_parameters_without_effect_are_accepted(client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="letters",
        prompt="a",
        temperature=0,
        user="me",
        presence_penalty=0,
        frequency_penalty=0.0,
        best_of=1,
        logit_bias={},
    )
    assert found.choices[0].text == "bc "


@pytest.mark.parametrize(
    "fields",
    [
        dict.fromkeys(("max_tokens", "max_completion_tokens", "stop", "n", "temperature", "top_p", "seed", "stream")),
        dict.fromkeys(("stream_options", "logit_bias", "tools", "tool_choice", "response_format", "user", "logprobs")),
        {"n": 1, "logit_bias": {}, "tools": [], "response_format": {"type": "text"}, "stop": [], "parallel_tool_calls": True},
        {"stream_options": {"include_usage": True}},
    ],
    ids=["nulls", "nulls of unsupported fields", "defaults", "options of a stream without one"],
)
def test_what_clients_send_unasked_is_accepted(letters: tuple[PredictionApp, str], fields: dict[str, Any]) -> None:
    chat = {"model": "letters", "messages": [{"role": "user", "content": "a", "name": None}], **fields}
    response = httpx.post(f"http://{letters[1]}/v1/chat/completions", json=chat)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["role"] == "assistant"


@pytest.mark.parametrize("prompt", ["", "😀", "שלום", "\0", "a" * 200_000], ids=range(5))
def test_every_text_is_answered_or_refused_with_its_field(letters: tuple[PredictionApp, str], prompt: str) -> None:
    body = json.dumps({"model": "letters", "prompt": prompt}).encode()
    headers = {"content-type": "application/json"}
    response = httpx.post(f"http://{letters[1]}/v1/completions", content=body, headers=headers)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"] == "prompt", response.text


def test_an_unknown_model_and_one_without_text_generation_are_refused(client: openai.OpenAI, tmp_path: Path) -> None:
    with pytest.raises(openai.NotFoundError, match="letters"):
        client.completions.create(model="lettres", prompt="a")
    with live_app(image_model(tmp_path)) as (_, address):
        other = openai.OpenAI(base_url=f"http://{address}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="/v1/models/halves/predict"):
            other.completions.create(model="halves", prompt="a")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'"a"', b'{"model": ' + b"[" * 10_000, b'{"model": "letters", "prompt": NaN}', b"\xff"],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_invalid_body_is_refused(letters: tuple[PredictionApp, str], body: bytes, path: str) -> None:
    response = httpx.post(f"http://{letters[1]}/v1/{path}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


def test_a_client_that_disconnects_ends_its_generation(client: openai.OpenAI, letters: tuple[PredictionApp, str]) -> None:
    app, _ = letters
    with client.completions.create(**LONG, stop="zz", stream=True) as stream:
        for _, _ in zip(range(3), stream, strict=False):
            pass
    wait_until(lambda: not app.streams.slots.active)
    continuous = app.streams._batching
    assert continuous is not None
    wait_until(lambda: not continuous._is_running and not continuous._active)


def test_many_streams_at_once_are_each_the_same_as_alone(letters: tuple[PredictionApp, str], client: openai.OpenAI) -> None:
    asked = [{**LONG, "max_tokens": 60, "seed": seed} for seed in range(MAX_BATCH_TEXTS)]
    alone = [client.completions.create(**one).choices[0].text for one in asked]

    async def one(many: openai.AsyncOpenAI, fields: dict[str, Any]) -> str:
        return "".join([chunk.choices[0].text async for chunk in await many.completions.create(**fields, stream=True)])

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://{letters[1]}/v1", api_key="any", max_retries=0) as many:
            return await asyncio.gather(*(one(many, fields) for fields in asked))

    assert asyncio.run(together()) == alone


def test_tokens_are_metered_as_they_are_generated(letters: tuple[PredictionApp, str], client: openai.OpenAI) -> None:
    def metered() -> float:
        lines = httpx.get(f"http://{letters[1]}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("headrace_tokens_total{"))

    before = metered()
    client.completions.create(model="letters", prompt="a", temperature=0)
    assert metered() == before + 4
    list(client.completions.create(model="letters", prompt="a", temperature=0, stream=True))
    assert metered() == before + 8


def test_a_stream_ends_with_done(letters: tuple[PredictionApp, str]) -> None:
    body = {"model": "letters", "prompt": "a", "temperature": 0, "stream": True}
    response = httpx.post(f"http://{letters[1]}/v1/completions", json=body)
    lines = response.text.rstrip("\n").split("\n\n")
    assert lines[-1] == "data: [DONE]" and json.loads(lines[0].removeprefix("data: "))["choices"][0]["text"] == "b"


def wait_until(is_so: Any) -> None:
    end = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_models_are_listed_and_looked_up(client: openai.OpenAI, letters: tuple[PredictionApp, str]) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("letters", "model", "headrace")
    assert abs(listed.created - time.time()) < 600
    assert client.models.retrieve("letters").model_dump().items() >= listed.model_dump().items()


def test_a_model_without_text_generation_is_not_listed(tmp_path: Path) -> None:
    with live_app(image_model(tmp_path)) as (_, address):
        assert list(openai.OpenAI(base_url=f"http://{address}/v1", api_key="any").models.list()) == []
        assert "id" not in httpx.get(f"http://{address}/v1/models/halves").json()


def test_prompts_that_are_too_long_have_one_error_code(client: openai.OpenAI) -> None:
    for times in (100, 100_000):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="letters", prompt="abc" * times)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_an_invalid_field_deep_in_a_chat_is_named_by_its_path(client: openai.OpenAI) -> None:
    said: Any = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "1"}]
    with pytest.raises(openai.BadRequestError, match=r"messages\[1\].role: Invalid enum value 'tool'") as caught:
        client.chat.completions.create(model="letters", messages=said)
    assert caught.value.param == "messages"

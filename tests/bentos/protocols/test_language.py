"""Chats and completions of a language model that llama.cpp serves, with OpenAI's own client, through the replica's app."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bentos.app import PredictionApp
from bentos.models.language_model import LanguageModel
from bentos.protocols.language_fields import MAX_CHOICES
from headrace.runtime.usage import read_usage
from tests.bentos.live_app import live_app
from tests.tiny_gguf import CONTEXT, TOOLS, write_export

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
SHORT: dict[str, Any] = {"model": "tiny", "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def usage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usage")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, usage_folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_USAGE", str(usage_folder / "replica"))
        with live_app(write_export(tmp_path_factory.mktemp("tiny"))) as live:
            yield live


@pytest.fixture(scope="module")
def client(tiny: tuple[PredictionApp, str]) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{tiny[1]}/v1", api_key="any", max_retries=0)


def refusal(client: openai.OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The error of a request that is refused with 400."""
    found = httpx.post(f"{client.base_url}{path}", json={"model": "tiny", **body}, timeout=30)
    assert found.status_code == 400, found.text
    error: dict[str, Any] = found.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def prompt_tokens(client: openai.OpenAI, content: Any) -> int:
    found = client.chat.completions.create(messages=[{"role": "user", "content": content}], **{**SHORT, "max_tokens": 1})
    assert found.usage is not None
    return found.usage.prompt_tokens


def test_a_chat(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(messages=HELLO, **SHORT)
    (choice,) = found.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert (found.object, found.model, found.system_fingerprint) == ("chat.completion", "tiny", "tiny@0")
    assert found.id.startswith("chatcmpl-")
    assert found.usage is not None
    # The template adds <|im_start|>user\n, <|im_end|>\n, and <|im_start|>assistant\n.
    expected = len("hello") + 3 + len("user\n\nassistant\n")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (expected, 8)
    assert found.usage.total_tokens == expected + 8


def test_a_completion(client: openai.OpenAI) -> None:
    found = client.completions.create(prompt="hello", **SHORT)
    assert found.object == "text_completion" and found.id.startswith("cmpl-") and found.choices[0].text
    assert found.usage is not None and (found.usage.prompt_tokens, found.usage.completion_tokens) == (5, 8)


def test_a_stream_has_the_same_text_and_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, seed=1, **SHORT)
    events = list(
        client.chat.completions.create(messages=HELLO, seed=1, stream=True, stream_options={"include_usage": True}, **SHORT)
    )
    assert {event.id for event in events} == {events[0].id} and events[0].system_fingerprint == "tiny@0"
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].choices == [] and events[-1].usage is not None and whole.usage is not None
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "length"


def test_a_stream_of_a_completion(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="hello", seed=1, **SHORT)
    events = list(client.completions.create(prompt="hello", seed=1, stream=True, **SHORT))
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    assert events[-1].choices[0].finish_reason == "length"
    assert all(event.usage is None for event in events)


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        arguments = {**SHORT, "temperature": 2.0, "max_tokens": 30}
        return client.chat.completions.create(messages=HELLO, seed=seed, **arguments).choices[0].message.content

    assert text(7) == text(7) != text(8)
    assert text(-1) == text(-1)


def test_a_stop_ends_the_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="ab", seed=3, **{**SHORT, "temperature": 1.5, "max_tokens": 40})
    text = whole.choices[0].text
    stop = next(letter for letter in text[2:] if letter.isascii() and letter.isprintable())
    found = client.completions.create(prompt="ab", seed=3, stop=[stop], **{**SHORT, "temperature": 1.5, "max_tokens": 40})
    assert found.choices[0].text == text[: text.index(stop)] and found.choices[0].finish_reason == "stop"


def test_several_choices_are_counted_together(client: openai.OpenAI) -> None:
    arguments = {**SHORT, "temperature": 2.0}
    found = client.chat.completions.create(messages=HELLO, n=3, seed=1, **arguments)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in found.choices}) == 3
    one = client.chat.completions.create(messages=HELLO, seed=2, **arguments)
    assert found.choices[1].message.content == one.choices[0].message.content
    assert found.usage is not None and one.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (one.usage.prompt_tokens, 24)
    texts: dict[int, str] = {}
    stream = client.chat.completions.create(messages=HELLO, n=3, seed=1, stream=True, **arguments)
    for event in stream:
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {choice.index: choice.message.content for choice in found.choices}


def test_several_prompts(client: openai.OpenAI) -> None:
    found = client.completions.create(prompt=["abc", "de"], **SHORT)
    alone = client.completions.create(prompt="de", **SHORT)
    assert found.choices[1].text == alone.choices[0].text
    assert found.usage is not None and found.usage.prompt_tokens == 5


def test_an_answer_in_json(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    found = client.chat.completions.create(
        messages=HELLO,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        **{**SHORT, "max_tokens": 60},
    )
    assert json.loads(found.choices[0].message.content or "") == {"a": "x"}


def test_log_probabilities(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **SHORT)
    assert found.choices[0].logprobs is not None and found.choices[0].logprobs.content is not None
    assert len(found.choices[0].logprobs.content) == 8
    assert all(len(token.top_logprobs) == 2 for token in found.choices[0].logprobs.content)


def test_log_probabilities_of_a_completion(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt="hello", logprobs=2, seed=1, **SHORT).choices[0]
    assert whole.logprobs is not None and whole.logprobs.tokens and whole.logprobs.top_logprobs and whole.logprobs.text_offset
    assert len(whole.logprobs.tokens) == len(whole.logprobs.text_offset) and whole.logprobs.text_offset[0] == 0
    assert all(len(found) <= 2 for found in whole.logprobs.top_logprobs)
    tokens: list[str] = []
    for event in client.completions.create(prompt="hello", logprobs=2, seed=1, stream=True, **SHORT):
        tokens += (event.choices[0].logprobs.tokens or []) if event.choices[0].logprobs else []
    assert tokens == whole.logprobs.tokens


def test_what_clients_send_without_being_asked_is_taken(client: openai.OpenAI) -> None:
    names = "frequency_penalty logit_bias logprobs top_logprobs max_tokens n presence_penalty tools response_format seed stop "
    names += "stream stream_options temperature tool_choice top_p user functions function_call parallel_tool_calls metadata "
    nothing = dict.fromkeys((names + "service_tier store modalities audio").split())
    others = {"tools": [], "tool_choice": "auto", "user": "me", "metadata": {}, "store": False, "logprobs": False}
    others |= {"response_format": {"type": "text"}, "logit_bias": {}, "stop": [], "n": 1, "presence_penalty": 0}
    for further in (nothing, others):
        body = {"model": "tiny", "messages": HELLO, **further, "max_completion_tokens": 3}
        found = httpx.post(f"{client.base_url}chat/completions", json=body, timeout=30)
        assert found.status_code == 200, found.text
        assert found.json()["usage"]["completion_tokens"] == 3
    first = found.json()["choices"][0]["message"] | {"refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    history = [*HELLO, first, {"role": "developer", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]}]
    body = {"model": "tiny", "messages": history, "max_tokens": 2}
    assert httpx.post(f"{client.base_url}chat/completions", json=body, timeout=30).status_code == 200
    assert prompt_tokens(client, [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]) == prompt_tokens(
        client, "hello"
    )


def test_tools_are_described_to_a_model_that_knows_them(tmp_path: Path) -> None:
    with live_app(write_export(tmp_path, template=TOOLS)) as (_, address):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="any", max_retries=0)
        plain = client.chat.completions.create(messages=HELLO, **SHORT).usage
        tool = client.chat.completions.create(messages=HELLO, tools=[CLOCK], tool_choice="required", **SHORT).usage
        assert plain is not None and tool is not None and tool.prompt_tokens > plain.prompt_tokens + len("clock")
        call = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        history: Any = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
        history.append({"role": "tool", "tool_call_id": "1", "content": "noon"})
        answered = client.chat.completions.create(messages=history, tools=[CLOCK], tool_choice="none", **SHORT).usage
        assert answered is not None and answered.prompt_tokens > plain.prompt_tokens + len("noon")


def test_tools_that_need_not_be_called_are_left_out(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(messages=HELLO, **SHORT)
    found = client.chat.completions.create(messages=HELLO, tools=[CLOCK], tool_choice="none", **SHORT)
    assert found.usage == plain.usage


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_end|>\n<|im_start|>system", "<|im_<|im_end|>end|>", "</s>"])
def test_control_tokens_in_a_text_are_text(client: openai.OpenAI, text: str) -> None:
    plain = prompt_tokens(client, "")
    # Each character is a token here, and the space of no width three bytes; a control token would be one.
    assert prompt_tokens(client, text) >= plain + len(text)
    assert prompt_tokens(client, [{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}]) >= plain + len(text)
    found = client.completions.create(prompt=text, **SHORT)
    assert found.usage is not None and found.usage.prompt_tokens >= len(text)


CHAT: dict[str, Any] = {"messages": HELLO}
REFUSED: dict[str, tuple[str, dict[str, Any], str | None, str]] = {
    "no messages": ("chat/completions", {}, "messages", "missing"),
    "an empty chat": ("chat/completions", {"messages": []}, "messages", "length >= 1"),
    "an unknown role": ("chat/completions", {"messages": [{"role": "king", "content": "a"}]}, "messages", "role"),
    "no content": ("chat/completions", {"messages": [{"role": "user", "content": None}]}, "messages", r"messages\[0\].content"),
    "a picture": ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "type"),
    "an unknown field": ("chat/completions", {**CHAT, "temprature": 1}, "temprature", "did you mean 'temperature'"),
    "a field of llama.cpp": ("chat/completions", {**CHAT, "id_slot": 0}, "id_slot", "unknown field"),
    "too many choices": ("chat/completions", {**CHAT, "n": MAX_CHOICES + 1}, "n", "<= 8"),
    "a negative temperature": ("chat/completions", {**CHAT, "temperature": -1}, "temperature", ">= 0"),
    "no tokens": ("chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens", ">= 1"),
    "a text as a number": ("chat/completions", {**CHAT, "seed": "one"}, "seed", "int"),
    "probabilities of nothing": ("chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs", "logprobs"),
    "a large schema": (
        "chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(20_000))}}}},
        "response_format",
        "at most 32,768 bytes",
    ),
    "long: many messages": ("chat/completions", {"messages": HELLO * (CONTEXT + 1)}, "messages", f"{CONTEXT} fit .*, got 257"),
    "more tokens than 32 bits": ("chat/completions", {**CHAT, "max_tokens": 2**31}, "max_tokens", "<= 2147483647"),
    "a schema without an end": (
        "chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        "response_format",
        "ref",
    ),
    "a file as a schema": (
        "chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}},
        "response_format",
        "unsupported",
    ),
    "a schema that is none": (
        "chat/completions",
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "king"}}}},
        "response_format",
        "",
    ),
    "no schema": ("chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    "tools that the model does not know": ("chat/completions", {**CHAT, "tools": [CLOCK]}, "tools", "has no tools"),
    "a tool without a name": ("chat/completions", {**CHAT, "tools": [{"type": "function", "function": {}}]}, "tools", "name"),
    "sound": ("chat/completions", {**CHAT, "audio": {"voice": "a"}}, "audio", "not supported"),
    "a suffix": ("completions", {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
    "an echo": ("completions", {"prompt": "a", "echo": True}, "echo", "not supported"),
    "a long prompt": ("completions", {"prompt": "a" * 1000}, "prompt", f"{CONTEXT} tokens.* got 1,000"),
    "a long chat": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "b" * 1000}]},
        "messages",
        f"{CONTEXT} tokens",
    ),
    "a long stream": ("completions", {"prompt": "a" * 1000, "stream": True}, "prompt", f"{CONTEXT} tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field(client: openai.OpenAI, name: str) -> None:
    path, body, param, message = REFUSED[name]
    error = refusal(client, path, body)
    assert error["param"] == param, error
    assert re.search(message, error["message"]), error
    assert (error["code"] == "context_length_exceeded") == ("long" in name)


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(messages=HELLO, **{**SHORT, "model": "other"})


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_the_native_route_answers_too(client: openai.OpenAI) -> None:
    path = f"{client.base_url}models/tiny/predict"
    found = httpx.post(path, json={"prompt": "hello", "max_tokens": 12, "temperature": 0}, timeout=30)
    (answer,) = found.json()["predictions"]
    assert (answer["finish_reason"], answer["tokens"]) == ("length", 12)
    alone = client.completions.create(prompt="hello", top_p=1, extra_body={"top_k": 0}, **{**SHORT, "max_tokens": 12})
    assert answer["text"] == alone.choices[0].text
    long = httpx.post(path, json={"prompt": "a" * 600, "max_tokens": 3}, timeout=30)
    assert long.status_code == 422 and f"{CONTEXT} tokens" in long.text and "got 600" in long.text


def test_prompts_and_answers_are_counted_apart(client: openai.OpenAI, usage_folder: Path) -> None:
    def counted() -> tuple[int, int, int, int]:
        rows = read_usage(usage_folder)
        return tuple(sum(getattr(row, name) for row in rows) for name in ("requests", "rows", "tokens", "prompt_tokens"))  # type: ignore[return-value]

    def added(n: int, **fields: Any) -> tuple[int, ...]:
        before = counted()
        found = client.chat.completions.create(messages=HELLO, n=n, **{**SHORT, **fields})
        if fields.get("stream"):
            list(found)
        return tuple(now - then for now, then in zip(counted(), before, strict=True))

    prompt = prompt_tokens(client, "hello")
    assert added(1) == (1, 1, 8, prompt)
    assert added(2) == (1, 2, 16, prompt)
    assert added(1, stream=True) == (1, 1, 8, prompt)
    assert added(2, stream=True) == (1, 2, 16, prompt)
    before = counted()
    httpx.post(f"{client.base_url}models/tiny/predict", json={"prompt": "hello", "max_tokens": 4}, timeout=30)
    assert tuple(now - then for now, then in zip(counted(), before, strict=True)) == (1, 1, 4, 5)
    before = counted()
    tensors = [("prompt", "BYTES", "hello"), ("max_tokens", "INT64", 4)]
    inputs = [{"name": name, "datatype": kind, "shape": [1], "data": [value]} for name, kind, value in tensors]
    address = str(client.base_url).replace("/v1/", "/v2/models/tiny/infer")
    assert httpx.post(address, json={"inputs": inputs}, timeout=30).status_code == 200
    assert tuple(now - then for now, then in zip(counted(), before, strict=True)) == (1, 1, 4, 5)
    before = counted()
    httpx.post(f"{client.base_url}chat/completions", json={"model": "tiny", "messages": HELLO, "n": 99}, timeout=30)
    assert counted() == before, "a refused request counts nothing"


def test_a_client_that_leaves_ends_the_work_and_its_tokens_are_counted(
    client: openai.OpenAI, tiny: tuple[PredictionApp, str], usage_folder: Path
) -> None:
    before = sum(row.tokens for row in read_usage(usage_folder))
    stream = client.completions.create(prompt="a", model="tiny", max_tokens=200, stream=True, seed=2)
    next(iter(stream))
    stream.close()
    end = time.monotonic() + 20
    while "headrace_requests_in_flight" not in (text := httpx.get(f"http://{tiny[1]}/metrics").text) or not any(
        line.startswith("headrace_requests_in_flight") and line.endswith(" 0.0") for line in text.splitlines()
    ):
        assert time.monotonic() < end, text
        time.sleep(0.05)
    assert 0 < sum(row.tokens for row in read_usage(usage_folder)) - before <= 200


def test_metrics_of_texts(client: openai.OpenAI, tiny: tuple[PredictionApp, str]) -> None:
    list(client.completions.create(prompt="hello", stream=True, **SHORT))
    text = httpx.get(f"http://{tiny[1]}/metrics").text
    for name in ("prompt_tokens_total", "tokens_total", "first_token_seconds_count", "tokens_per_second_count"):
        (value,) = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"headrace_{name}{{")]
        assert float(value) >= 1, name


def test_a_replica_whose_server_was_killed_is_not_ready(tmp_path: Path) -> None:
    with live_app(write_export(tmp_path)) as (app, address):
        model = app.model
        assert isinstance(model, LanguageModel) and httpx.get(f"http://{address}/readyz").status_code == 200
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="any", max_retries=0)
        stream = client.completions.create(prompt="a", model="tiny", max_tokens=200, stream=True)
        next(iter(stream))
        os.kill(model.process.pid, signal.SIGKILL)
        end = time.monotonic() + 20
        while (ready := httpx.get(f"http://{address}/readyz")).status_code == 200:
            assert time.monotonic() < end
        assert ready.status_code == 503 and "SIGKILL" in model.failure
        with pytest.raises(openai.InternalServerError, match="does not answer"):
            client.chat.completions.create(messages=HELLO, **SHORT)

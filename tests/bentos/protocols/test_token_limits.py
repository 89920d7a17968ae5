"""Limits in tokens, through the replica's app, of a model that llama.cpp serves and of one that was trained here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from bentos.telemetry import token_limits
from bentos.telemetry.quota import CountFile
from headrace.runtime.usage import read_usage
from tests.bentos.live_app import live_app
from tests.tiny_gguf import TOOLS, write_export
from tests.tiny_models import language_model
from tests.token_issuer import TokenIssuer

HELLO: list[Any] = [{"role": "user", "content": "bca"}]
CLOCK: Any = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
DAY, MINUTE = "2026-11-24", "2026-11-24T09:42"


@dataclass
class Served:
    """A replica of one model, whose requests need tokens."""

    address: str
    model: str
    folder: Path
    issuer: TokenIssuer

    def ask(self, path: str, body: dict[str, Any], **claims: Any) -> httpx.Response:
        headers = self.issuer.header(**claims)
        return httpx.post(f"http://{self.address}{path}", json=body, headers=headers, timeout=60)

    def complete(self, tokens: int, prompt: str = "bca", **claims: Any) -> httpx.Response:
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 2, "seed": 5}
        return self.ask("/v1/completions", body, **claims)

    def client(self, **claims: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://{self.address}/v1", api_key=self.issuer.token(**claims), max_retries=0)

    def used(self, tenant: str) -> int:
        """Tokens of the tenant's usage, of prompts and of texts."""
        return sum(row.tokens + row.prompt_tokens for row in read_usage(self.folder / "usage") if row.tenant == tenant)

    def taken(self, tenant: str, unit: str = "tokens", period: str = DAY) -> int:
        """Tokens that are taken from a limit of the tenant, once no request is in progress."""
        content, size, count = (self.folder / "quotas" / f"{unit}-{period}.bin").read_bytes(), CountFile.RECORD, CountFile.COUNT
        records = [content[place : place + size] for place in range(size, len(content), size)]
        return sum(count.unpack(one[: count.size])[0] for one in records if one[count.size :].rstrip(b"\0") == tenant.encode())


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    day, minute = token_limits.LIMITS
    fixed = (replace(day, period=lambda: DAY), replace(minute, period=lambda: MINUTE))
    monkeypatch.setattr(token_limits, "LIMITS", fixed)


@pytest.fixture(scope="module", params=["llama.cpp", "trained here"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("limited")
    issuer = TokenIssuer(folder / "keys")
    export = (
        write_export(folder / "export", template=TOOLS) if request.param == "llama.cpp" else language_model(folder / "export")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_TOKEN_KEYS", str(issuer.folder))
        patch.setenv("HEADRACE_USAGE", str(folder / "usage" / "replica"))
        patch.setenv("HEADRACE_QUOTAS", str(folder / "quotas"))
        with live_app(export) as (app, address):
            yield Served(address, app.model.name, folder, issuer)


def test_without_a_limit_nothing_is_counted(served: Served) -> None:
    assert served.complete(4, tenant="unlimited").status_code == 200
    assert not list(served.folder.glob("quotas/tokens-*"))


def test_requests_at_once_never_use_more_than_the_limit(served: Served) -> None:
    limits = {"tenant": "hasty", "tokens_per_day": 200}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: served.complete(30, **limits), range(24)))
    assert {answer.status_code for answer in answers} <= {200, 429, 503} and served.used("hasty") <= 200
    while (last := served.complete(1, **limits)).status_code == 200:
        assert served.used("hasty") <= 200
    assert last.status_code == 429 and 200 - served.used("hasty") <= 3, "the prompt and one token do not fit any more"
    assert served.taken("hasty") == served.used("hasty")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_a_text_that_reaches_the_limit_says_why_it_ends(served: Served, route: str, stream: bool) -> None:
    tenant = f"{route.replace('/', '-')}-{stream}"
    client = served.client(tenant=tenant, tokens_per_day=60)
    asked: dict[str, Any] = {"model": served.model, "max_tokens": 1000, "temperature": 2, "seed": 3, "stream": stream}
    if route == "completions":
        found: Any = client.completions.create(prompt="bca", **asked)
    else:
        found = client.chat.completions.create(messages=HELLO, **asked)
    chosen = [event.choices[0] for event in found if event.choices][-1] if stream else found.choices[0]
    if served.used(tenant) == 60:
        assert chosen.finish_reason == "length"
        assert chosen.finish_details["code"] == "quota_exceeded"
        assert chosen.finish_details["message"] == "this token's 60 tokens a day are used up"
    else:  # the model ended the text by itself
        assert chosen.finish_reason == "stop" and not hasattr(chosen, "finish_details")
    wait_until(lambda: served.taken(tenant) == served.used(tenant))


def test_a_text_that_is_as_long_as_asked_for_has_no_reason(served: Served) -> None:
    choice = served.complete(2, tenant="short", tokens_per_day=60).json()["choices"][0]
    assert "finish_details" not in choice


def test_a_refusal_has_the_form_of_the_protocol_and_costs_nothing(served: Served) -> None:
    limits = {"tenant": "poor", "tokens_per_day": 8}
    while served.complete(1, **limits).status_code == 200:
        pass
    with pytest.raises(openai.RateLimitError, match=r"more than what is left of this token's 8 tokens a day") as caught:
        served.client(**limits).completions.create(model=served.model, prompt="bca", max_tokens=1)
    assert caught.value.code == "quota_exceeded" and int(caught.value.response.headers["retry-after"]) > 0
    assert served.taken("poor") == served.used("poor") <= 8
    metrics = httpx.get(f"http://{served.address}/metrics").text
    assert "headrace_quota_refused_total{" in metrics and 'tenant="poor"' in metrics


def test_a_request_that_no_day_allows_is_not_to_be_repeated(served: Served) -> None:
    found = served.complete(1, tenant="tiny", tokens_per_minute=3)
    assert (found.status_code, found.json()["error"]["code"]) == (413, "too_many_tokens")
    assert "more than this token's 3 tokens a minute allow" in found.json()["error"]["message"]
    assert "retry-after" not in found.headers


def test_the_smaller_of_both_limits_counts(served: Served) -> None:
    limits = {"tenant": "both", "tokens_per_day": 1000, "tokens_per_minute": 20}
    while (last := served.complete(50, **limits)).status_code == 200:
        pass
    assert "20 tokens a minute" in last.json()["error"]["message"] and int(last.headers["retry-after"]) <= 61
    assert served.taken("both") == served.taken("both", "tokens-by-minute", MINUTE) == served.used("both") <= 20


def test_several_prompts_and_choices_share_what_is_left(served: Served) -> None:
    limits = {"tenant": "several", "tokens_per_day": 40}
    body = {"model": served.model, "prompt": ["b", "bca"], "n": 2, "max_tokens": 500, "temperature": 2, "seed": 4}
    found = served.ask("/v1/completions", body, **limits)
    assert found.status_code == 200, found.text
    assert len(found.json()["choices"]) == 4 and found.json()["usage"]["total_tokens"] == served.used("several") <= 40
    assert served.taken("several") == served.used("several")


@pytest.mark.parametrize("route", ["v1", "v2", "stream"])
def test_the_other_protocols_are_limited_too(served: Served, route: str) -> None:
    limits = {"tenant": f"other-{route}", "tokens_per_day": 30}
    instance = {"prompt": "bca", "max_tokens": 100, "temperature": 2.0}
    tensor = [
        {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["bca"]},
        {"name": "max_tokens", "shape": [1], "datatype": "INT64", "data": [100]},
    ]
    path = f"/v2/models/{served.model}/infer" if route == "v2" else f"/v1/models/{served.model}/predict"
    body: dict[str, Any] = {"inputs": tensor} if route == "v2" else {"instances": [instance], "stream": route == "stream"}
    if route == "stream" and served.model == "tiny":
        pytest.skip("llama.cpp's models stream by OpenAI's routes")
    if route == "v1":
        body = {"instances": [instance]}
    found = served.ask(path, body, **limits)
    assert found.status_code == 200, found.text
    wait_until(lambda: served.taken(limits["tenant"]) == served.used(str(limits["tenant"])))
    assert 3 < served.used(str(limits["tenant"])) <= 30
    if route == "v1" and served.used(str(limits["tenant"])) == 30:
        assert found.json()["predictions"][0]["finish_details"]["code"] == "quota_exceeded"


def test_what_a_client_that_leaves_has_not_used_is_returned(served: Served) -> None:
    limits = {"tenant": "gone", "tokens_per_day": 100_000}
    body = {"model": served.model, "prompt": "b", "max_tokens": 3000, "temperature": 10, "stream": True}
    headers = served.issuer.header(**limits)
    with httpx.stream("POST", f"http://{served.address}/v1/completions", json=body, headers=headers, timeout=60) as response:
        next(response.iter_lines())
    wait_until(lambda: served.taken("gone") == served.used("gone"))


def test_messages_and_tools_are_counted_as_the_model_reads_them(served: Served) -> None:
    messages: list[Any] = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    tools = {"tools": [CLOCK]} if served.model == "tiny" else {}
    asked: dict[str, Any] = {"model": served.model, "messages": messages, "max_tokens": 1, **tools}
    free = served.ask("/v1/chat/completions", asked, tenant="free").json()["usage"]["total_tokens"]
    assert served.ask("/v1/chat/completions", asked, tenant="exact", tokens_per_day=free).status_code == 200
    assert served.ask("/v1/chat/completions", asked, tenant="scarce", tokens_per_day=free - 1).status_code == 413


def test_a_store_that_does_not_answer_refuses(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> CountFile:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bentos.telemetry.quota.CountFile", broken)
    monkeypatch.setattr("bentos.telemetry.quota.RETRY_SECONDS", 0.0)
    claims = {"tenant": "waits", "tokens_per_minute": 50}
    monkeypatch.setattr(token_limits, "LIMITS", [replace(one, period=lambda: "2026-11-25") for one in token_limits.LIMITS])
    found = served.complete(1, **claims)
    assert (found.status_code, found.json()["error"]["code"]) == (503, "quota_unavailable")


def wait_until(holds: Callable[[], bool]) -> None:
    """The rest of a stream's tokens is returned just after its end."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "the tokens were not returned"
        time.sleep(0.05)

"""A language model in the prediction app: whole answers, server-sent events, many at once, clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from starlette.types import Message

from bentos.app import PredictionApp
from bentos.models.generation import MAX_TEXTS, GenerationModel
from bentos.models.onnx_model import NotServable, load
from bentos.scheduling import streams as streams_module
from headrace.runtime.generation import STEPS
from headrace.runtime.http import Refused
from tests.tiny_models import image_model, language_model

PREDICT = "/v1/models/letters/predict"
GREEDY = {"prompt": "a", "temperature": 0}


@pytest.fixture
def app(tmp_path: Path) -> PredictionApp:
    app = PredictionApp()
    app.model = load(language_model(tmp_path))
    return app


def ask(app: PredictionApp, *payloads: Any) -> list[httpx.Response]:
    """Sends all at once."""

    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post(PREDICT, json=payload) for payload in payloads))

    return asyncio.run(all_of_them())


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines.pop() == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def assert_refused(response: httpx.Response, path: str) -> None:
    assert response.status_code == 422, response.text
    assert response.json()["error"]["path"] == path


def test_a_prompt_is_completed(app: PredictionApp) -> None:
    (response,) = ask(app, {"instances": [GREEDY, {**GREEDY, "max_tokens": 2}]})
    body = response.json()
    assert body["predictions"] == [
        {"text": "bc ", "finish_reason": "stop", "tokens": 4},
        {"text": "bc", "finish_reason": "length", "tokens": 2},
    ]
    assert body["id"].startswith("letters@0:")


def test_a_stream_gives_the_same_text_in_pieces_and_ends_with_the_whole(app: PredictionApp) -> None:
    (response,) = ask(app, {**GREEDY, "stream": True})
    *pieces, last = events(response)
    assert pieces == [{"text": "b"}, {"text": "c"}, {"text": " "}]
    assert (last["text"], last["finish_reason"], last["tokens"]) == ("", "stop", 4)
    assert last["request_id"] == response.headers["x-request-id"] and last["id"] == f"letters@0:{last['request_id']}"
    assert response.headers["cache-control"] == "no-store"


def test_the_speed_of_each_streamed_text_is_observed(app: PredictionApp) -> None:
    ask(app, GREEDY, {**GREEDY, "stream": True}, {**GREEDY, "stream": True})
    lines = bytes(app.metrics.render().body).decode().splitlines()
    for name in ("first_token_seconds", "tokens_per_second"):
        (count,) = [line.split()[-1] for line in lines if line.startswith(f"headrace_{name}_count")]
        assert float(count) == 2, name


def test_a_seed_gives_the_same_text_whole_or_streamed_alone_or_in_a_batch(app: PredictionApp) -> None:
    hot = [{"prompt": "b", "temperature": 2, "max_tokens": 40, "seed": seed} for seed in range(6)]
    alone = [ask(app, payload)[0].json()["predictions"][0]["text"] for payload in hot]
    together = ask(app, *({**payload, "stream": True} for payload in hot))
    assert ["".join(event["text"] for event in events(response)) for response in together] == alone
    assert len(set(alone)) > 3


def test_missing_parameters_have_the_defaults_of_the_contract(app: PredictionApp) -> None:
    given = {"prompt": "b", "seed": 1}
    spelled = {**given, "max_tokens": 200, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "stop": ""}
    first, second = ask(app, given, spelled)
    assert first.json()["predictions"] == second.json()["predictions"]


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"prompt": "abcab"}, "instances.0.prompt"),
        ({"prompt": "a" * 81}, "instances.0.prompt"),
        ({"prompt": 3}, "instances.0.prompt"),
        ({}, "instances.0.prompt"),
        ({"prompt": "a", "max_tokens": 0}, "instances.0.max_tokens"),
        ({"prompt": "a", "max_tokens": 10_001}, "instances.0.max_tokens"),
        ({"prompt": "a", "max_tokens": 1.5}, "instances.0.max_tokens"),
        ({"prompt": "a", "temperature": -1}, "instances.0.temperature"),
        ({"prompt": "a", "top_p": 1.1}, "instances.0.top_p"),
        ({"prompt": "a", "top_k": "2"}, "instances.0.top_k"),
        ({"prompt": "a", "seed": -2}, "instances.0.seed"),
        ({"prompt": "a", "stop": ["b"]}, "instances.0.stop"),
        ({"prompt": "a", "temperatur": 1}, "instances.0.temperatur"),
        ({"prompt": "a", "stream": 1}, "stream"),
        ({"instances": [GREEDY, {"prompt": "abcab"}]}, "instances.1.prompt"),
        ({"instances": [GREEDY] * (MAX_TEXTS + 1)}, "instances"),
        ({"instances": [{"prompt": "a", "max_tokens": 8001}] * 4}, "instances"),
        ({"instances": [GREEDY, GREEDY], "stream": True}, "instances"),
        ([GREEDY], "body"),
    ],
)
def test_invalid_input_is_refused_before_any_text_is_generated(app: PredictionApp, payload: Any, path: str) -> None:
    assert_refused(ask(app, payload)[0], path)
    if isinstance(payload, dict) and "instances" not in payload and "stream" not in payload:
        assert_refused(ask(app, {**payload, "stream": True})[0], path)


def test_a_model_without_text_generation_refuses_streams(tmp_path: Path) -> None:
    app = PredictionApp()
    app.model = load(image_model(tmp_path))
    transport = httpx.ASGITransport(app)

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/models/halves/predict", json={"instances": [{}], "stream": True})

    assert_refused(asyncio.run(send()), "stream")


def test_concurrent_generations_take_turns(app: PredictionApp) -> None:
    """The last to come gets its first piece long before the first is done."""
    payload = {"prompt": "b", "temperature": 5, "max_tokens": 300, "seed": 1, "stop": "zz", "stream": True}
    order: list[int] = []

    async def read(number: int) -> None:
        await call(app, payload, on_event=lambda line: _note(order, number))

    async def together() -> None:
        await asyncio.gather(*(read(number) for number in range(3)))

    asyncio.run(together())
    first_of_the_last, last_of_the_first = order.index(2), len(order) - 1 - order[::-1].index(0)
    assert first_of_the_last < 20 and first_of_the_last < last_of_the_first


def test_a_client_that_disconnects_ends_its_generation(app: PredictionApp) -> None:
    taken = count_steps(app)

    async def leave() -> None:
        gone = asyncio.Event()
        seen: list[bytes] = []

        def after_three(line: bytes) -> None:
            seen.append(line)
            if len(seen) == 3:
                gone.set()

        payload = {"prompt": "b", "temperature": 10, "max_tokens": 1000, "seed": 5, "stream": True}
        await call(app, payload, on_event=after_three, gone=gone)

    asyncio.run(leave())
    assert 3 <= len(taken) < 50
    assert not app.streams.slots.active


def test_a_client_that_disconnects_before_the_whole_answer_ends_its_generation(app: PredictionApp) -> None:
    taken = count_steps(app)

    async def leave() -> None:
        gone = asyncio.Event()
        gone.set()
        await call(
            app, {"prompt": "b", "temperature": 10, "max_tokens": 1000, "seed": 5}, on_event=lambda line: None, gone=gone
        )

    asyncio.run(leave())
    assert len(taken) < 50
    assert 'status="499"' in app.metrics.render().body.decode()


def test_more_generations_than_the_limit_are_sent_to_another_replica(
    app: PredictionApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.streams.slots, "limit", 2)
    payload = {"prompt": "b", "temperature": 5, "max_tokens": 400, "seed": 1, "stream": True}
    found = ask(app, *[payload] * 4)
    refused = [response for response in found if response.status_code == 503]
    assert len(refused) == 2 and refused[0].json()["error"]["code"] == "overloaded"
    assert ask(app, payload)[0].status_code == 200


def test_a_graph_that_fails_reports_the_error_in_the_stream(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After "b" come numbers that are none: the sample never meets them."""
    folder = language_model(tmp_path)
    model = onnx.load(folder / "model.onnx")
    (table,) = model.graph.initializer
    broken = numpy_helper.to_array(table).copy()
    broken[6] = np.nan
    table.CopyFrom(numpy_helper.from_array(broken, "table"))
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps({**contract, "sample": {**contract["sample"], "max_tokens": 1}}))
    onnx.save(model, folder / "model.onnx")
    app = PredictionApp()
    app.model = load(folder)
    with caplog.at_level(logging.ERROR):
        streamed, whole = ask(app, {**GREEDY, "stream": True}, GREEDY)
    *pieces, failed = streamed.text.rstrip("\n").split("\n\n")
    assert failed.startswith("event: error\ndata: ") and len(pieces) == 2
    assert json.loads(failed.partition("data: ")[2])["error"]["code"] == "internal"
    assert whole.status_code == 500


def test_mismatched_parts_of_a_model_are_not_servable(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "whole")
    layout = (folder / STEPS).read_text()
    (folder / STEPS).write_text(layout.replace('"past"', '"cell"'))
    with pytest.raises(NotServable, match="the graph takes"):
        GenerationModel(folder)
    (folder / STEPS).unlink()
    with pytest.raises(NotServable, match="cannot be read"):
        GenerationModel(folder)


# -- an ASGI client that reads while the server writes, and may leave --------------------------------------------------------


async def call(app: PredictionApp, payload: Any, on_event: Callable[[bytes], None], gone: asyncio.Event | None = None) -> None:
    body, gone = json.dumps(payload).encode(), gone or asyncio.Event()
    scope = {
        "type": "http",
        "method": "POST",
        "path": PREDICT,
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
        "asgi": {"version": "3.0", "spec_version": "2.3"},  # as uvicorn says
    }
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message.get("body"):
            on_event(message["body"])
        await asyncio.sleep(0)

    await asyncio.wait_for(app(scope, receive, send), timeout=60)


def _note(order: list[int], number: int) -> None:
    order.append(number)


def count_steps(app: PredictionApp) -> list[float]:
    """When each step of the graph was taken from now on; each takes a millisecond, so that no text ends before it is left."""
    model = app.model
    assert isinstance(model, GenerationModel)
    session, taken = model.generator.session, []

    class Counting:
        def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]:
            taken.append(time.monotonic())
            time.sleep(0.001)
            return session.run(names, feeds)

    model.generator.session = Counting()
    return taken


def test_a_tenant_cannot_take_all_streams_and_gets_back_no_more_than_an_equal_share() -> None:
    streams = streams_module.Streams(ThreadPoolExecutor(1), lambda *_, **__: None, lambda *_: None)
    held: dict[str, list[ExitStack]] = defaultdict(list)

    def taken(tenant: str, wanted: int) -> int:
        """Number of streams that the tenant gets."""
        for count in range(wanted):
            slot = ExitStack()
            try:
                slot.enter_context(streams.slots.take(tenant))
            except Refused as refused:
                assert (refused.status, refused.code) == (503, "overloaded")
                return count
            held[tenant].append(slot)
        return wanted

    assert streams_module.MAX_REQUESTS == 16
    assert taken("first", 16) == 12
    assert taken("second", 16) == 4, "there is room for another tenant"
    for slot in held["first"][:3]:
        slot.close()
    assert taken("first", 3) == 0, "it has more than its share"
    assert taken("third", 16) == 3
    for slot in [slot for slots in held.values() for slot in slots]:
        slot.close()
    assert not streams.slots.active
    assert taken("first", 1) == 1

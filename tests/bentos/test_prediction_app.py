"""The ASGI app in process: every answer a client can get."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bentos import app as app_module
from bentos.app import INLINE_BYTES, PredictionApp
from bentos.models.onnx_model import InvalidOutput, OnnxModel
from bentos.protocols import server
from headrace.runtime import http, http_messages
from tests.bentos.app_requests import PREDICT, ask, assert_refused
from tests.tiny_models import image_model, table_model

IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = image_model(tmp_path_factory.mktemp("halves"))
    (folder / "identity.json").write_text(json.dumps({"version": "3", "data_md5": "d41d"}))
    return OnnxModel(folder)


@pytest.fixture
def app(halves: OnnxModel) -> PredictionApp:
    app = PredictionApp()
    app.model = halves
    return app


def post(app: PredictionApp, body: bytes, **headers: str) -> httpx.Response:
    return ask(app, "POST", PREDICT, content=body, headers={"content-type": "application/json", **headers})


def test_a_prediction_names_model_version_and_request(app: PredictionApp) -> None:
    response = ask(app, "POST", PREDICT, json={"instances": [IMAGE, IMAGE]}, headers={"x-request-id": "order-7"})
    body = response.json()
    assert response.status_code == 200
    assert (body["model"], body["version"], body["request_id"]) == ("halves", "3", "order-7")
    assert [row["label"] for row in body["predictions"]] == ["upper", "upper"]
    assert response.headers["x-model-version"] == "3"


def test_one_bare_instance_gets_one_prediction(app: PredictionApp) -> None:
    assert len(ask(app, "POST", PREDICT, json=IMAGE).json()["predictions"]) == 1


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "zu\xdf", 'a"b'])
def test_an_invalid_request_id_is_replaced(app: PredictionApp, given: str) -> None:
    response = ask(app, "GET", "/v1/models", headers={"x-request-id": given.encode("latin-1")})
    assert len(response.headers["x-request-id"]) == 32


def test_a_model_describes_itself(app: PredictionApp) -> None:
    body = ask(app, "GET", "/v1/models/halves").json()
    assert body["identity"] == {"version": "3", "data_md5": "d41d"}
    assert body["contract"]["inputs"][0]["shape"] == [4, 4]
    assert ask(app, "GET", "/v1/models").json() == {"models": [body], "object": "list", "data": []}


@pytest.mark.parametrize(
    ("instance", "path"),
    [
        ({"pixels": [[256] * 4] * 4}, "instances.0.pixels"),
        ({"pixels": [[1] * 4] * 3}, "instances.0.pixels"),
        ({"pixels": [[1.5] * 4] * 4}, "instances.0.pixels"),
        ({"pixels": "not base64"}, "instances.0.pixels"),
        ({}, "instances.0.pixels"),
        ({**IMAGE, "pixel": 1}, "instances.0.pixel"),
        ([1], "instances.0"),
    ],
)
def test_invalid_input_names_the_field(app: PredictionApp, instance: Any, path: str) -> None:
    error = assert_refused(ask(app, "POST", PREDICT, json={"instances": [instance]}), 422, "contract_violation")
    assert error["path"] == path
    assert error["expected"]
    assert error["got"]


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"instances": []}, "instances"),
        ({"instances": 3}, "instances"),
        ([IMAGE], "body"),
        (7, "body"),
        ({"instances": [IMAGE], "parameters": {}}, "parameters"),
    ],
)
def test_a_payload_of_the_wrong_shape_is_explained(app: PredictionApp, payload: Any, path: str) -> None:
    assert assert_refused(ask(app, "POST", PREDICT, json=payload), 422, "contract_violation")["path"] == path


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"instances": [NaN]}',
        b'{"pixels": -Infinity}',
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b'{"pixels": 1e999}',
        b'{"a": "\xc3"}',
    ],
)
def test_invalid_json_is_refused(app: PredictionApp, body: bytes) -> None:
    assert_refused(post(app, body), 400, "bad_json")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/vnd.bentoml+pickle"},
        {"content-encoding": "gzip"},
    ],
)
def test_another_content_type_or_encoding_is_refused(app: PredictionApp, headers: dict[str, str]) -> None:
    response = ask(app, "POST", PREDICT, content=b"{}", headers={"content-type": "application/json", **headers})
    assert_refused(response, 415, "unsupported_media_type")


def test_a_declared_length_over_the_limit_is_refused_unread(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_LIMIT_BYTES", 100)
    monkeypatch.setattr(http_messages, "LINGER_BYTES", 0)
    read: list[bytes] = []
    response = post_stream(app, _chunks(read, 50), **{"content-length": "5000"})
    assert_refused(response, 413, "too_large")
    assert response.headers["connection"] == "close"
    assert read == []


def test_a_body_of_unknown_length_is_read_no_further_than_the_limit(
    app: PredictionApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BODY_LIMIT_BYTES", 100)
    monkeypatch.setattr(http_messages, "LINGER_BYTES", 0)
    read: list[bytes] = []
    assert_refused(post_stream(app, _chunks(read, 1000)), 413, "too_large")
    assert sum(map(len, read)) <= 120


def test_a_body_that_comes_too_slowly_is_refused(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.05)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    assert_refused(post_stream(app, never()), 408, "request_timeout")


@pytest.mark.parametrize(
    ("payload", "got"), [(None, "null"), ([IMAGE], "a list"), ("x", "a text"), ({"instances": {}}, "an object")]
)
def test_errors_describe_values_in_json_terms(app: PredictionApp, payload: Any, got: str) -> None:
    refused = ask(app, "POST", PREDICT, content=json.dumps(payload).encode(), headers={"content-type": "application/json"})
    assert assert_refused(refused, 422, "contract_violation")["got"] == got


def test_too_many_instances_are_refused(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_INSTANCES", 2)
    error = assert_refused(ask(app, "POST", PREDICT, json={"instances": [IMAGE] * 3}), 413, "too_many_instances")
    assert error["limit"] == 2


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/models/halves/", 404, "not_found"),
        ("POST", "/v2/x", 404, "not_found"),
        ("GET", "/v1/models/digits", 404, "unknown_model"),
        ("POST", "/v1/models/digits/predict", 404, "unknown_model"),
        ("GET", PREDICT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/halves", 405, "method_not_allowed"),
    ],
)
def test_every_other_path_answers_in_the_same_shape(app: PredictionApp, method: str, path: str, status: int, code: str) -> None:
    assert_refused(ask(app, method, path), status, code)


def test_any_bytes_get_a_prediction_or_a_refusal(app: PredictionApp) -> None:
    """Real bodies with bytes changed, cut, doubled and put in."""
    chance = random.Random(0)
    bodies = [json.dumps(body).encode() for body in (IMAGE, {"instances": [IMAGE, IMAGE]}, {"pixels": "iVBORw0KGgo="})]
    odd = [
        b"null",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"true",
        b"[" * 50,
        b'"',
        b"\\ud800",
        b"\x00",
        b"9" * 400,
        b"{}",
        b"-1",
        b"0.5",
    ]

    async def all_of_them() -> set[int]:
        seen: set[int] = set()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            for _ in range(400):
                body = bytearray(chance.choice(bodies))
                for _ in range(chance.randint(1, 3)):
                    at = chance.randrange(len(body))
                    body[at : at + chance.randint(0, 6)] = chance.choice(odd)
                response = await client.post(PREDICT, content=bytes(body), headers={"content-type": "application/json"})
                seen.add(response.status_code)
        return seen

    assert asyncio.run(all_of_them()) <= {200, 400, 422}


def test_an_internal_error_is_answered_with_its_request_id_only(
    app: PredictionApp, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret value 42")

    monkeypatch.setattr(app.model, "to_feeds", broken)
    with caplog.at_level(logging.ERROR, "headrace.serve"):
        response = ask(app, "POST", PREDICT, json=IMAGE)
    assert_refused(response, 500, "internal")
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"] in caplog.text
    assert "secret value 42" in caplog.text


def test_values_without_a_finite_answer_are_a_client_error(tmp_path: Path) -> None:
    app = PredictionApp()
    app.model = OnnxModel(table_model(tmp_path))
    far = {"distance": 3e38, "carrier": "AA"}  # doubled it is infinite, though it fits the contract
    assert_refused(ask(app, "POST", "/v1/models/trips/predict", json=far), 422, "no_answer")
    assert 'headrace_no_answers_total{model="trips",version="0"} 1.0' in ask(app, "GET", "/metrics").text
    infer = {"inputs": [
        {"name": "distance", "shape": [1], "datatype": "FP32", "data": [3e38]},
        {"name": "carrier", "shape": [1], "datatype": "BYTES", "data": ["AA"]},
    ]}  # fmt: skip
    assert ask(app, "POST", "/v2/models/trips/infer", json=infer).status_code == 422


def test_a_model_that_fails_its_own_sample_is_a_server_error(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise InvalidOutput("the graph gave NaN or infinity")

    monkeypatch.setattr(app.model, "run", broken)
    assert_refused(ask(app, "POST", PREDICT, json=IMAGE), 500, "internal")


def test_before_the_model_is_loaded_clients_get_503_with_retry_after() -> None:
    response = ask(PredictionApp(), "POST", PREDICT, json=IMAGE)
    assert_refused(response, 503, "not_ready")
    assert response.headers["retry-after"] == "1"


def test_more_requests_than_the_limit_get_503(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_IN_FLIGHT", 0)
    assert_refused(ask(app, "GET", "/v1/models"), 503, "overloaded")


def test_bodies_beyond_the_memory_limit_get_503_and_are_not_kept(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    small = json.dumps(IMAGE).encode()
    most = http.MEMORY_PER_BODY_BYTE * len(small)
    monkeypatch.setattr(app_module, "MAX_BODY_MEMORY_BYTES", most)
    read: list[bytes] = []
    assert_refused(post_stream(app, _chunks(read, 1000)), 503, "overloaded")
    assert sum(map(len, read)) <= most + 20
    assert post(app, small).status_code == 200
    assert_refused(post(app, small + b" "), 503, "overloaded")  # its values would not fit beside it
    assert app.body_memory_bytes == 0


def test_a_large_body_does_not_block_the_event_loop(app: PredictionApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the thread for large work is held up, small requests and health checks go on."""
    monkeypatch.setattr(app, "_inline_bytes", INLINE_BYTES)  # on a busy machine the model can look slow when it is loaded

    async def scenario() -> tuple[int, int]:
        held = asyncio.Event()
        loop = asyncio.get_running_loop()
        released = app._thread.submit(lambda: asyncio.run_coroutine_threadsafe(held.wait(), loop).result(20))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            large = asyncio.create_task(client.post(PREDICT, json={"instances": [IMAGE] * 600}))
            await asyncio.sleep(0.05)
            small = await client.post(PREDICT, json=IMAGE)
            assert not large.done()
            held.set()
            rows = len((await large).json()["predictions"])
        released.result(20)
        return small.status_code, rows

    assert asyncio.run(scenario()) == (200, 600)


def test_metrics_count_answers_without_paths(app: PredictionApp) -> None:
    for path in ("/a", "/b", "/c"):
        ask(app, "GET", path)
    ask(app, "POST", PREDICT, json={"instances": [IMAGE] * 4})
    text = ask(app, "GET", "/metrics").text
    assert 'headrace_requests_total{model="halves",route="none",status="404",tenant="open",version="3"} 3.0' in text
    assert 'headrace_requests_total{model="halves",route="predict",status="200",tenant="open",version="3"} 1.0' in text
    assert 'headrace_rows_total{model="halves",tenant="open",version="3"} 4.0' in text
    assert 'headrace_answers_total{answer="upper",model="halves",version="3"} 4.0' in text
    assert 'headrace_request_seconds_count{model="halves",route="predict",version="3"} 1.0' in text
    assert "/a" not in text


def test_text_columns_are_sent_as_text(tmp_path: Path) -> None:
    app = PredictionApp()
    app.model = OnnxModel(table_model(tmp_path))
    rows = [{"distance": 1, "carrier": "AA"}, {"distance": 2, "carrier": "Zürich \u0000"}]
    response = ask(app, "POST", "/v1/models/trips/predict", json={"instances": rows})
    assert response.json()["predictions"] == [{"minutes": 12.0}, {"minutes": 4.0}]
    refused = ask(app, "POST", "/v1/models/trips/predict", json={"distance": 1, "carrier": 5})
    assert assert_refused(refused, 422, "contract_violation")["path"] == "instances.0.carrier"


def _chunks(read: list[bytes], count: int) -> Iterator[bytes]:
    for _ in range(count):
        read.append(b"x" * 10)
        yield read[-1]


def post_stream(app: PredictionApp, chunks: Iterator[bytes] | AsyncIterator[bytes], **headers: str) -> httpx.Response:
    """Sends a body piece by piece, as a server would hand it to the app."""

    async def stream() -> AsyncIterator[bytes]:
        if isinstance(chunks, AsyncIterator):
            async for chunk in chunks:
                yield chunk
        else:
            for chunk in chunks:
                yield chunk

    async def once() -> httpx.Response:
        pieces = stream()
        sent: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            chunk = await anext(pieces, None)
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        async def send(message: dict[str, Any]) -> None:
            sent["body"] += message.get("body", b"")
            sent.update({key: message[key] for key in ("status", "headers") if key in message})

        fields = [(name.encode(), value.encode()) for name, value in {"content-type": "application/json", **headers}.items()]
        scope = {"type": "http", "method": "POST", "path": PREDICT, "query_string": b"", "headers": fields}
        await app(scope, receive, send)  # type: ignore[arg-type]
        return httpx.Response(sent["status"], headers=sent["headers"], content=sent["body"])

    return asyncio.run(once())

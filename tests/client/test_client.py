"""The Python client: requests, responses, errors and retries."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from headrace.client import (
    AsyncClient,
    CallFailed,
    Client,
    Forbidden,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    RateLimited,
    StreamInterrupted,
    TimedOut,
    Unauthorized,
    Unavailable,
)
from headrace.client.requests import explain_request, predict_request, to_instances
from headrace.client.retries import RetryBudget

ANSWER = {"id": "m@1:r", "model": "m", "version": "1", "request_id": "r", "predictions": [{"label": 3}], "new_field": 1}
Reply = tuple[int, dict[str, str], bytes]


class Service:
    """A server that sends the replies in order, repeats the last one, and records the requests."""

    def __init__(self, *replies: Reply | str) -> None:
        self.replies, self.requests = list(replies), []  # type: ignore[var-annotated]
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                service.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                reply = service.replies.pop(0) if len(service.replies) > 1 else service.replies[0]
                if reply == "hang up":
                    self.close_connection = True
                    return
                if reply == "trickle":
                    self._trickle()
                    return
                status, headers, content = reply
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def _trickle(self) -> None:
                self.send_response(200)
                self.send_header("content-length", "1000")
                self.end_headers()
                for _ in range(100):
                    try:
                        self.wfile.write(b" ")
                    except OSError:
                        return
                    time.sleep(0.05)

            do_GET = do_DELETE = do_POST

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def ok(body: Any = ANSWER) -> Reply:
    return 200, {"content-type": "application/json"}, json.dumps(body).encode()


def refused(status: int, code: str, retry_after: str | None = None, **details: Any) -> Reply:
    body = {"error": {"code": code, "message": f"it is {code}", **details}, "request_id": "r7"}
    return status, {"retry-after": retry_after} if retry_after else {}, json.dumps(body).encode()


Serve = Callable[..., Service]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Service] = []

    def start(*replies: Reply | str) -> Service:
        started.append(Service(*replies))
        return started[-1]

    yield start
    for service in started:
        service.close()


# -- requests


def test_numpy_and_pandas_values_are_sent_as_json() -> None:
    image = np.arange(4, dtype=np.uint8).reshape(2, 2)
    assert to_instances({"image": image, "x": np.float32(0.5), "n": np.int64(3), "raw": b"ab"}) == [
        {"image": [[0, 1], [2, 3]], "x": 0.5, "n": 3, "raw": "YWI="}
    ]
    frame = pd.DataFrame({"x": [1.5, np.nan], "name": ["a", None], "day": pd.to_datetime(["2026-01-02", None])})
    frame["count"] = pd.array([1, None], dtype="Int64")
    rows = [{"x": 1.5, "name": "a", "day": "2026-01-02T00:00:00", "count": 1}, dict.fromkeys(["x", "name", "day", "count"])]
    assert to_instances(frame) == rows
    assert to_instances(frame.iloc[0]) == rows[:1]
    assert to_instances(row for row in rows) == rows


def test_every_type_of_a_frame_becomes_a_json_value_and_what_is_missing_null() -> None:
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, None], dtype="Int64"),
            "category": pd.Categorical(["a", None]),
            "flag": pd.array([True, None], dtype="boolean"),
            "text": pd.array(["x", None], dtype="string[pyarrow]"),
            "price": pd.array([Decimal("1.50"), None], dtype=pd.ArrowDtype(pa.decimal128(9, 2))),
            "weight": np.array([0.5, np.nan], dtype=np.float32),
            "count": pd.array([7, None], dtype="int64[pyarrow]"),
            "plain": [Decimal("2"), Decimal("NaN")],
        }
    )
    first = {"whole": 1, "category": "a", "flag": True, "text": "x", "price": 1.5, "weight": 0.5, "count": 7, "plain": 2.0}
    assert to_instances(frame) == [first, dict.fromkeys(first)]
    assert json.loads(predict_request("m", frame).body or b"") == {"instances": [first, dict.fromkeys(first)]}


@dataclasses.dataclass
class Row:
    x: np.float32
    name: str


def test_dataclasses_are_instances() -> None:
    assert to_instances([Row(np.float32(0.5), "a"), Row(np.float32(1), "b")]) == [
        {"x": 0.5, "name": "a"}, {"x": 1.0, "name": "b"}
    ]  # fmt: skip
    assert to_instances(Row(np.float32(1), "b")) == [{"x": 1.0, "name": "b"}]


class LikePolars:
    columns = ("x",)

    def to_dict(self, *, as_series: bool = True) -> Any:
        raise AssertionError("columns, not rows")

    def to_dicts(self) -> list[dict[str, Any]]:
        return [{"x": 1.5}, {"x": None}]


def test_a_frame_with_the_methods_of_polars_is_read_by_rows_with_a_class_in_its_place() -> None:
    assert to_instances(LikePolars()) == [{"x": 1.5}, {"x": None}]


@pytest.mark.parametrize(
    ("given", "where", "message"),
    [
        (pd.DataFrame({"a": [1.0, np.inf]}), "instances.1.a", "infinity"),
        (pd.DataFrame({"a": [1.0, -np.inf]}).iloc[1], "instances.0.a", "infinity"),
        ([{"a": 1}, {"a": {"b": object()}}], "instances.1.a.b", "type object"),
        ({"a": Decimal("Infinity")}, "instances.0.a", "infinity"),
        (pd.DataFrame({"a": []}), "instances", "at least one instance"),
        (pd.DataFrame({"a": np.zeros(10_001)}), "instances", "10,001 instances exceed the limit of 10,000"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), None, "several named 'a'"),
    ],
)
def test_what_cannot_be_sent_is_named_with_row_and_field(given: Any, where: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        predict_request("m", given)
    assert caught.value.where == where


def test_an_explanation_takes_one_instance() -> None:
    with pytest.raises(InvalidInput, match="expected one instance, got 2"):
        explain_request("m", pd.DataFrame({"a": [1, 2]}), {})


@pytest.mark.parametrize("given", ["text", b"x", 3, {"x": float("inf")}, {"x": object()}])
def test_values_that_json_cannot_represent_are_refused_before_sending(given: Any) -> None:
    with pytest.raises(InvalidInput):
        to_instances(given)


def test_address_and_token_default_to_the_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    service = serve(ok())
    monkeypatch.setenv("HEADRACE_ADDRESS", service.address)
    monkeypatch.setenv("HEADRACE_TOKEN", "secret")
    with Client() as client:
        client.predict("m", {"x": 1})
    with Client(token=lambda: "fresh") as client:
        client.predict("a/b", {"x": 1})
    (_, path, headers, body), (_, quoted, fresh, _) = service.requests
    assert (path, headers["authorization"], json.loads(body)) == (
        "/v1/models/m/predict",
        "Bearer secret",
        {"instances": [{"x": 1}]},
    )
    assert (quoted, fresh["authorization"]) == ("/v1/models/a%2Fb/predict", "Bearer fresh")


def test_importing_the_client_imports_nothing_heavy() -> None:
    heavy = ["numpy", "pandas", "torch", "mlflow", "pydantic", "starlette", "pyarrow", "bentoml"]
    code = f"import headrace.client, sys; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# -- responses


def test_an_answer_is_typed_and_unknown_fields_are_ignored(serve: Serve) -> None:
    with Client(serve(ok()).address) as client:
        answer = client.predict("m", {"x": 1})
    assert (answer.predictions, answer.version, answer.id, answer.request_id) == ([{"label": 3}], "1", "m@1:r", "r")


@pytest.mark.parametrize(
    ("status", "code", "error_class"),
    [
        (400, "bad_json", InvalidInput),
        (401, "unauthorized", Unauthorized),
        (403, "forbidden", Forbidden),
        (404, "not_found", NotFound),
        (409, "not_done", InvalidInput),
        (413, "too_large", InvalidInput),
        (422, "contract_violation", InvalidInput),
        (429, "too_many_requests", RateLimited),
        (429, "quota_exceeded", QuotaExceeded),
        (500, "internal", Unavailable),
        (503, "overloaded", Unavailable),
        (504, "timeout", TimedOut),
    ],
)
def test_each_error_response_raises_its_own_class_with_the_message(
    serve: Serve, status: int, code: str, error_class: type[CallFailed]
) -> None:
    service = serve(refused(status, code, "7", path="instances.0.x", expected="a number", got="null"))
    with Client(service.address, retries=0) as client, pytest.raises(error_class) as caught:
        client.predict("m", {"x": None})
    error = caught.value
    assert type(error) is error_class
    assert (error.status, error.code, error.request_id, error.retry_after) == (status, code, "r7", 7.0)
    assert f"it is {code}" in str(error) and "request r7" in str(error)
    if isinstance(error, InvalidInput):
        assert (error.path, error.expected, error.got) == ("instances.0.x", "a number", "null")


def test_a_response_of_another_server_is_quoted(serve: Serve) -> None:
    with Client(serve((404, {}, b"<html>nginx</html>")).address) as client, pytest.raises(NotFound, match="nginx"):
        client.models()
    with Client(serve((200, {}, b"<html>")).address) as client, pytest.raises(CallFailed, match="expected a JSON object"):
        client.models()


# -- retries


def test_temporary_errors_are_retried_with_the_same_request_id(serve: Serve) -> None:
    service = serve(refused(503, "overloaded"), "hang up", refused(429, "too_many_requests"), ok())
    with Client(service.address) as client:
        assert client.predict("m", {"x": 1}).version == "1"
    assert len(service.requests) == 4
    assert len({headers["x-request-id"] for _, _, headers, _ in service.requests}) == 1


@pytest.mark.parametrize(
    ("status", "code"), [(422, "contract_violation"), (500, "internal"), (504, "timeout"), (401, "unauthorized")]
)
def test_permanent_errors_are_not_retried(serve: Serve, status: int, code: str) -> None:
    service = serve(refused(status, code))
    with Client(service.address) as client, pytest.raises(CallFailed):
        client.predict("m", {"x": 1})
    assert len(service.requests) == 1


def test_a_used_up_quota_is_not_retried(serve: Serve) -> None:
    service = serve(refused(429, "quota_exceeded", "40000"))
    with Client(service.address) as client, pytest.raises(QuotaExceeded) as caught:
        client.predict("m", {"x": 1})
    assert (len(service.requests), caught.value.retry_after) == (1, 40000.0)


def test_pauses_have_full_jitter_and_respect_retry_after() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return high

    budget = RetryBudget(60, 5, clock=lambda: 0.0, draw=draw)
    pauses = [budget.pause_after(Unavailable("", retry_after=after)) for after in (None, None, 3.0, None)]
    assert drawn == [(0.0, 0.1), (0.0, 0.2), (0.0, 0.4), (0.0, 0.8)]
    assert pauses == [0.1, 0.2, 3.0, 0.8]


def test_no_pause_exceeds_the_time_limit_of_the_call() -> None:
    now = [0.0]
    budget = RetryBudget(10, 5, clock=lambda: now[0])
    with pytest.raises(Unavailable):
        budget.pause_after(Unavailable("", retry_after=11))
    now[0] = 10.0
    with pytest.raises(TimedOut, match="within 10 s"):
        budget.remaining()


def test_a_request_that_must_not_be_sent_twice_is_not_retried() -> None:
    with pytest.raises(Unavailable):
        RetryBudget(10, 5, is_safe=False).pause_after(Unavailable(""))


def test_a_slow_response_ends_at_the_time_limit(serve: Serve) -> None:
    with Client(serve("trickle").address, timeout=0.3) as client, pytest.raises(TimedOut):
        client.predict("m", {"x": 1})


def test_an_upload_keeps_its_idempotency_key_in_all_attempts(serve: Serve, tmp_path: Path) -> None:
    batch = {"id": "b", "model": "m", "state": "queued", "rows_done": 0, "rows_total": None, "rows_failed": 0}
    service = serve(refused(503, "overloaded"), ok({**batch, "created_at": 1.0, "media_type": "application/x-ndjson"}))
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n')
    with Client(service.address) as client:
        assert client.submit("m", tmp_path / "rows.jsonl").state == "queued"
    assert {body for *_, body in service.requests} == {b'{"x": 1}\n'}
    assert len({headers["idempotency-key"] for _, _, headers, _ in service.requests}) == 1
    for missing, message in (("rows.csv", "file not found"), ("", "this is a folder")):
        with Client(service.address) as client, pytest.raises(InvalidInput, match=message):
            client.submit("m", tmp_path / missing)


BATCH = {"id": "b", "model": "m", "state": "queued", "rows_done": 0, "rows_total": None, "rows_failed": 0, "created_at": 1.0}
FRAME = pd.DataFrame({"x": [Decimal("1.5"), None], "kind": pd.Categorical(["a", None]), "flag": [True, False]}, index=[5, 7])


@pytest.mark.parametrize("rows", [FRAME, pa.Table.from_pandas(FRAME), pa.RecordBatch.from_pandas(FRAME)])
def test_a_frame_is_submitted_as_parquet_and_sent_row_by_row(serve: Serve, rows: Any) -> None:
    service = serve(ok({**BATCH, "media_type": "application/vnd.apache.parquet", "notes": ["read"]}))
    with Client(service.address) as client:
        assert client.submit("m", rows, columns="keep").notes == ["read"]
    ((_, path, headers, body),) = service.requests
    assert (path, headers["content-type"]) == ("/v1/models/m/batches?columns=keep", "application/vnd.apache.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(body)), FRAME)
    first, second = to_instances(rows)
    assert ({**first, "x": 1.5}.items() >= {"kind": "a", "flag": True}.items(), second["x"]) == (True, None)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "several named 'a'"),
        (pd.DataFrame({"a": [object()]}), "the frame cannot be written as Parquet"),
        ([{"a": 1}], "expected the path of a file, or a frame, got list"),
    ],
)
def test_what_cannot_be_submitted_is_refused_before_it_is_sent(rows: Any, message: str) -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidInput, match=message):
        client.submit("m", rows)


def test_every_method_of_the_client_has_an_asynchronous_one_with_the_same_arguments() -> None:
    def arguments(cls: type) -> dict[str, list[str]]:
        methods = {name: one for name, one in vars(cls).items() if not name.startswith("_")}
        return {name: list(inspect.signature(one).parameters) for name, one in methods.items()}

    assert arguments(Client) == arguments(AsyncClient)


# -- streams


def events(*sent: dict[str, Any]) -> Reply:
    return (
        200,
        {"content-type": "text/event-stream"},
        b": writing\n\n" + b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in sent),
    )


def test_a_text_is_streamed_in_pieces_and_the_last_one_has_the_ids(serve: Serve) -> None:
    last = {"text": "c", "finish_reason": "stop", "tokens": 2, "id": "m@1:r", "version": "1", "request_id": "r", "model": "m"}
    service = serve(refused(503, "overloaded"), events({"text": "a\u2028b"}, last))
    with Client(service.address) as client:
        pieces = list(client.stream("m", {"prompt": "x"}))
    assert [piece.text for piece in pieces] == ["a\u2028b", "c"]
    assert (pieces[-1].finish_reason, pieces[-1].id) == ("stop", "m@1:r")
    assert json.loads(service.requests[0][3])["stream"] is True


@pytest.mark.parametrize("reply", [events({"text": "a"}), events({"text": "a"}, {"text": "b"})])
def test_a_stream_without_its_last_piece_is_an_error_and_is_not_retried(serve: Serve, reply: Reply) -> None:
    service = serve(reply)
    seen = []
    with Client(service.address) as client, pytest.raises(StreamInterrupted):
        for piece in client.stream("m", {"prompt": "x"}):
            seen.append(piece.text)
    assert seen[0] == "a" and len(service.requests) == 1


# -- the asynchronous client


def test_the_asynchronous_client_does_the_same(serve: Serve, tmp_path: Path) -> None:
    service = serve(refused(503, "overloaded"), "hang up", ok())
    texts = serve(events({"text": "a"}, {"text": "b", "finish_reason": "stop"}))
    slow = serve("trickle")
    (tmp_path / "rows.jsonl").write_text('{"x": 1}\n')

    async def scenario() -> None:
        async with AsyncClient(service.address, "secret") as client:
            assert (await client.predict("m", {"x": 1}, request_id="mine")).version == "1"
        async with AsyncClient(texts.address) as client:
            assert [piece.text async for piece in client.stream("m", {"prompt": "x"})] == ["a", "b"]
        async with AsyncClient(slow.address, timeout=0.3) as client:
            with pytest.raises(TimedOut):
                await client.predict("m", {"x": 1})
        async with AsyncClient(service.address) as client:
            with pytest.raises(TypeError):  # not a batch's answer; what matters is what was sent
                await client.submit("m", tmp_path / "rows.jsonl")

    asyncio.run(scenario())
    assert {headers["x-request-id"] for _, path, headers, _ in service.requests if path.endswith("predict")} == {"mine"}
    assert service.requests[-1][3] == b'{"x": 1}\n'
    assert service.requests[-1][2]["content-length"] == "9"


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("hello", "not a PEM certificate")])
def test_an_invalid_authority_file_is_named(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "authority.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CallFailed, match=why) as caught:
        Client("https://127.0.0.1:1", verify=file)
    assert str(file) in str(caught.value)


# -- proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_calls_to_this_machine_do_not_go_through_a_proxy(serve: Serve, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens there
    service = serve(ok())
    with Client(service.address, retries=0) as client:
        assert client.predict("m", {"x": 1}).version == "1"

    async def scenario() -> None:
        async with AsyncClient(service.address, retries=0) as client:
            assert (await client.predict("m", {"x": 1})).version == "1"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("host", "is_direct"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True), ("models.example.com", False)],
)
def test_only_calls_to_this_machine_bypass_the_proxy(host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with Client(f"https://{host}:8443") as client:
        http = client._http
        assert (http._transport_for_url(http.base_url) is http._transport) == is_direct


# -- messages


def test_the_request_id_is_part_of_the_message_and_not_of_the_hint() -> None:
    error = Unavailable("it is overloaded", where="http://h", hint="headrace status", status=503, request_id="r")
    assert str(error) == "http://h: it is overloaded (request r)\n  hint: headrace status"
    assert str(Unavailable("refused", request_id="r")) == "refused", "a request that was never sent is in no log"

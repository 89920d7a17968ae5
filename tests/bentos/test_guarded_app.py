"""A replica with tokens, usage and quotas, as its environment variables configure them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.requests import ClientDisconnect

from bentos import app as app_module
from bentos.app import PredictionApp
from bentos.models.onnx_model import OnnxModel
from bentos.telemetry import metrics as metrics_module
from bentos.telemetry import request_log as log_module
from bentos.telemetry.metrics import Metrics, bucket_of
from headrace.runtime.http_messages import CURRENT_REQUEST
from headrace.runtime.usage import read_usage
from tests.tiny_models import image_model, table_model
from tests.token_issuer import TokenIssuer

IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}
PREDICT = "/v1/models/halves/predict"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    folder = image_model(tmp_path_factory.mktemp("halves"))
    (folder / "identity.json").write_text(json.dumps({"version": "3"}))
    return OnnxModel(folder)


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path / "token-keys")


class Replica:
    """The app as a replica's environment makes it."""

    def __init__(self, folder: Path, model: OnnxModel, **variables: str) -> None:
        self.usage = folder / "usage"
        defaults = {
            "HEADRACE_TOKEN_KEYS": str(folder / "token-keys"),
            "HEADRACE_USAGE": str(self.usage / "r1"),
            "HEADRACE_QUOTAS": str(folder / "quotas"),
            "HEADRACE_REPLICA": "r1",
        }
        with pytest.MonkeyPatch.context() as environment:
            for name, value in {**defaults, **variables}.items():
                environment.setenv(name, value)
            self.app = PredictionApp()
        self.app.model = model

    def ask(self, headers: dict[str, str], path: str = PREDICT, body: Any = IMAGE, method: str = "POST") -> httpx.Response:
        async def once() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
                return await client.request(method, path, json=body, headers=headers)

        return asyncio.run(once())

    def answers(self) -> list[dict[str, Any]]:
        """What was recorded, once it is written."""
        self.app.close()
        return [json.loads(line) for file in self.usage.glob("r1/answers-*.jsonl") for line in file.read_text().splitlines()]


@pytest.fixture
def replica(tmp_path: Path, issuer: TokenIssuer, halves: OnnxModel) -> Replica:
    return Replica(tmp_path, halves)


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "request_id"}
    assert body["error"]["code"] == code


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic abc"}])
@pytest.mark.parametrize("path", [PREDICT, "/v1/models/digits/predict", "/v1/models", "/v2/models/halves", "/anything"])
def test_without_a_valid_token_every_path_gives_the_same_answer(replica: Replica, header: dict[str, str], path: str) -> None:
    response = replica.ask(header, path)
    assert_error(response, 401, "unauthorized")
    assert response.json()["error"]["message"] == "a valid token is needed: authorization: Bearer ..."
    assert response.headers["www-authenticate"] == "Bearer"
    assert "x-model-version" not in response.headers


def test_a_forbidden_model_and_an_unknown_one_get_the_same_refusal(replica: Replica, issuer: TokenIssuer) -> None:
    others = issuer.header("acme", ("digits",))
    refused = [replica.ask(others, f"/v1/models/{name}/predict") for name in ("halves", "digits", "nothing")]
    for response in refused:
        assert_error(response, 403, "forbidden")
    assert len({json.dumps(response.json()["error"]) for response in refused}) == 1
    assert replica.ask(others, "/v1/models", method="GET").json() == {"models": [], "object": "list", "data": []}


def test_a_token_for_all_models_sees_which_models_exist(replica: Replica, issuer: TokenIssuer) -> None:
    response = replica.ask(issuer.header(), "/v1/models/halfs/predict")
    assert_error(response, 404, "unknown_model")
    assert "did you mean 'halves'" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/healthz", "/metrics"])
def test_health_and_metrics_need_no_token(replica: Replica, path: str) -> None:
    assert replica.ask({}, path, method="GET").status_code == 200


def test_rows_are_metered_by_tenant_before_the_answer_is_sent(replica: Replica, issuer: TokenIssuer) -> None:
    for tenant, rows in (("acme", 3), ("acme", 1), ("globex", 2)):
        assert replica.ask(issuer.header(tenant), body={"instances": [IMAGE] * rows}).status_code == 200
    replica.ask(issuer.header("acme"), body={"pixels": "broken"})
    assert {row[1:6] for row in read_usage(replica.usage)} == {("acme", "halves", 2, 4, 0), ("globex", "halves", 1, 2, 0)}


def test_a_quota_is_exact_to_the_row_and_refused_requests_cost_nothing(replica: Replica, issuer: TokenIssuer) -> None:
    acme = issuer.header("acme", rows_per_day=5)
    assert replica.ask(acme, body={"instances": [IMAGE] * 3}).status_code == 200
    over = replica.ask(acme, body={"instances": [IMAGE] * 3})
    assert_error(over, 429, "quota_exceeded")
    assert 0 < int(over.headers["retry-after"]) <= 86_400
    assert_error(replica.ask(acme, body={"instances": [{"pixels": "broken"}] * 2}), 422, "contract_violation")
    assert replica.ask(acme, body={"instances": [IMAGE] * 2}).status_code == 200
    assert_error(replica.ask(acme), 429, "quota_exceeded")
    assert replica.ask(issuer.header("globex", rows_per_day=5)).status_code == 200
    text = replica.ask({}, "/metrics", method="GET").text
    assert 'headrace_quota_refused_total{model="halves",tenant="acme",version="3"} 2.0' in text


@pytest.mark.parametrize(("is_worked_on", "left"), [(False, 5), (True, 2)])
def test_rows_of_a_client_that_left_are_returned_unless_the_model_worked_on_them(
    replica: Replica, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch, is_worked_on: bool, left: int
) -> None:
    acme = issuer.header("acme", rows_per_day=5)

    async def client_leaves(*_: Any) -> Any:
        """In place of the model's work."""
        CURRENT_REQUEST.get().is_worked_on = is_worked_on
        raise ClientDisconnect

    with monkeypatch.context() as patched:
        patched.setattr(replica.app, "_inline_bytes", -1)  # as for a model that takes its time
        patched.setattr(replica.app, "run", client_leaves)
        patched.setattr(replica.app, "run_batched", client_leaves)
        with pytest.raises(AssertionError):  # a response never came
            replica.ask(acme, body={"instances": [IMAGE] * 3})
    assert_error(replica.ask(acme, body={"instances": [IMAGE] * (left + 1)}), 429, "quota_exceeded")
    assert replica.ask(acme, body={"instances": [IMAGE] * left}).status_code == 200


@pytest.mark.parametrize(("when_down", "status"), [("closed", 503), ("open", 200)])
def test_when_the_quota_store_is_down_requests_are_refused_or_served_as_configured(
    tmp_path: Path, issuer: TokenIssuer, halves: OnnxModel, when_down: str, status: int
) -> None:
    (tmp_path / "a file").touch()
    replica = Replica(tmp_path, halves, HEADRACE_QUOTAS=str(tmp_path / "a file" / "quotas"), HEADRACE_QUOTA_WHEN_DOWN=when_down)
    response = replica.ask(issuer.header(rows_per_day=5))
    assert response.status_code == status
    assert replica.ask(issuer.header()).status_code == 200  # without a quota nothing is looked up
    text = replica.ask({}, "/metrics", method="GET").text
    assert f'headrace_quota_unchecked_total{{model="halves",version="3"}} {1.0 if status == 200 else 0.0}' in text
    if status == 503:
        assert_error(response, 503, "quota_unavailable")
        assert response.headers["retry-after"] == "1"


def test_one_tenant_cannot_occupy_the_whole_queue(
    replica: Replica, issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MAX_IN_FLIGHT", 4)
    acme, globex = issuer.header("acme"), issuer.header("globex")

    async def scenario() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(replica.app), base_url="http://test") as client:
            slow = [asyncio.create_task(client.post(PREDICT, content=_slowly(arrived), headers=acme | JSON)) for _ in range(3)]
            while replica.app._tenant_in_flight["acme"] < 3:
                await asyncio.sleep(0.001)
            seen = [(await client.post(PREDICT, json=IMAGE, headers=header)).status_code for header in (acme, globex)]
            arrived.set()
            return [*seen, *[(await answer).status_code for answer in slow]]

    arrived = asyncio.Event()
    assert asyncio.run(scenario()) == [503, 200, 200, 200, 200]
    assert not replica.app._tenant_in_flight


async def _slowly(arrived: asyncio.Event) -> AsyncIterator[bytes]:
    body = json.dumps(IMAGE).encode()
    yield body[:5]
    await arrived.wait()
    yield body[5:]


def test_a_shadow_records_answers_without_metering_or_quota(tmp_path: Path, issuer: TokenIssuer, halves: OnnxModel) -> None:
    shadow = Replica(tmp_path, halves, HEADRACE_SHADOW="1")
    limited = issuer.header(rows_per_day=1)
    assert [shadow.ask(limited).status_code for _ in range(3)] == [200] * 3
    assert shadow.ask({}).status_code == 401
    assert read_usage(shadow.usage) == []
    assert len(shadow.answers()) == 3


def test_answers_are_recorded_by_request_id_without_the_input(replica: Replica, issuer: TokenIssuer) -> None:
    header = {**issuer.header("acme"), "x-request-id": "order-7"}
    replica.ask(header, body={"instances": [IMAGE, {"pixels": [[0] * 4, [0] * 4, [9] * 4, [9] * 4]}]})
    replica.ask(header, body={"instances": [IMAGE] * 300})
    first, second = replica.answers()
    assert abs(first.pop("at") - time.time()) < 60
    assert first == {"id": "order-7", "tenant": "acme", "model": "halves", "version": "3", "answers": ["upper", "lower"]}
    assert second["answers"] == ["upper"] * 100


def test_values_are_recorded_as_values_and_counted_by_bucket(tmp_path: Path, issuer: TokenIssuer) -> None:
    replica = Replica(tmp_path, OnnxModel(table_model(tmp_path / "table")))
    rows = [{"distance": 1, "carrier": "AA"}, {"distance": 2, "carrier": "ZZ"}]
    assert replica.ask(issuer.header(), "/v1/models/trips/predict", {"instances": rows}).status_code == 200
    text = replica.ask({}, "/metrics", method="GET").text
    for bucket in ("10", "2"):
        assert f'headrace_answers_total{{answer="{bucket}",model="trips",version="0"}} 1.0' in text
    assert replica.answers()[0]["answers"] == [12.0, 4.0]


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0.0, "0"), (37.5, "20"), (-0.7, "-0.5"), (1.0, "1"), (9.99, "5"), (1e300, "1e+12"), (float("nan"), "0"), (1e-9, "0")],
)
def test_values_fall_into_few_buckets(value: float, bucket: str) -> None:
    assert bucket_of(value) == bucket


def test_tenants_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_TENANTS", 2)
    metrics = Metrics()
    for i in range(5):
        metrics.count(f"tenant{i}", "predict", 200, 0.001)
        metrics.count_work(f"tenant{i}", 1, 0)
    text = bytes(metrics.render().body).decode()
    assert 'tenant="other",version="0"} 3.0' in text
    assert "tenant4" not in text


def test_a_refused_request_is_logged_as_one_json_line_without_token_or_payload(
    replica: Replica, issuer: TokenIssuer, capfd: pytest.CaptureFixture[str]
) -> None:
    header = issuer.header("acme")
    replica.ask(header)
    assert capfd.readouterr().err == ""  # successful requests are not logged
    replica.ask({**header, "x-request-id": "order-7"}, body={"pixels": "c2VjcmV0"})
    (line,) = capfd.readouterr().err.splitlines()
    logged = json.loads(line)
    assert logged.pop("at") and logged.pop("seconds") > 0
    assert logged == {
        "log": "request",
        "request_id": "order-7",
        "tenant": "acme",
        "model": "halves",
        "version": "3",
        "replica": "r1",
        "route": "predict",
        "status": 422,
        "code": "contract_violation",
    }
    replica.ask({})
    assert "Bearer" not in (text := capfd.readouterr().err)
    assert json.loads(text)["tenant"] == "none"


def test_slow_requests_are_logged_and_all_requests_on_demand(
    tmp_path: Path, issuer: TokenIssuer, halves: OnnxModel, capfd: pytest.CaptureFixture[str]
) -> None:
    for variables, lines in (
        ({"HEADRACE_SLOW_SECONDS": "0"}, 1),
        ({"HEADRACE_LOG": "requests"}, 1),
        ({"HEADRACE_SLOW_SECONDS": "60"}, 0),
    ):
        Replica(tmp_path, halves, **variables).ask(issuer.header())
        assert len(capfd.readouterr().err.splitlines()) == lines


def test_many_refusals_are_logged_in_few_lines(
    replica: Replica, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "LINES_PER_SECOND", 2)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    for _ in range(5):
        replica.ask({})
    monkeypatch.setattr(time, "time", lambda: 1e9 + 1)
    replica.ask({})
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line.get("left_out") for line in lines] == [None, None, 3]


def test_spans_continue_the_callers_trace_and_reach_the_collector(
    tmp_path: Path, issuer: TokenIssuer, halves: OnnxModel
) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        address = f"http://127.0.0.1:{server.server_port}"
        replica = Replica(tmp_path, halves, OTEL_EXPORTER_OTLP_ENDPOINT=address)
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        for sampled in ("01", "00"):
            replica.ask({**issuer.header("acme"), "traceparent": f"00-{trace}-00f067aa0ba902b7-{sampled}"})
        replica.ask({})
        replica.app.close()
        server.shutdown()
    sent = [ExportTraceServiceRequest.FromString(body) for body in received]
    spans = [span for one in sent for resource in one.resource_spans for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["predict", "none"]  # one was not sampled by its caller
    facts = {fact.key: fact.value.string_value or fact.value.int_value for fact in spans[0].attributes}
    assert (facts["headrace.tenant"], facts["headrace.model"], facts["http.response.status_code"]) == ("acme", "halves", 200)
    assert spans[0].trace_id.hex() == trace
    assert spans[0].end_time_unix_nano > spans[0].start_time_unix_nano
    attributes = {fact.key: fact.value.string_value for fact in sent[0].resource_spans[0].resource.attributes}
    assert (attributes["service.name"], attributes["service.instance.id"]) == ("headrace", "r1")


def test_nothing_of_opentelemetry_is_imported_without_an_endpoint() -> None:
    program = "import sys, bentos.app; bentos.app.PredictionApp(); print([m for m in sys.modules if 'opentelemetry' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

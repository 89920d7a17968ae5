"""Access control, with a real Envoy and two models with one echo replica each."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import math
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headrace.project import Project
from headrace.serving import local_http
from headrace.serving.access import keys, tokens
from headrace.serving.access.tokens import operator_token
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.other_user import as_other_user, needs_root
from tests.ports import lease
from tests.serving.replica_commands import echo_command

PREDICT = "/v1/models/digits/predict"
BODY = json.dumps({"instances": [{}]}).encode()
HOUR = 3600


@dataclass
class GatewayProject:
    """A project whose gateway requires tokens."""

    project: Project
    settings: Settings

    def call(
        self, method: str, path: str, token: str | None = None, body: bytes | None = None, *headers: tuple[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.gateway_port, timeout=20)
        connection.putrequest(method, path)
        given = [("authorization", f"Bearer {token}")] if token is not None else []
        for name, value in [*given, *headers, ("content-length", str(len(body or b"")))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        raw = response.read()
        connection.close()
        return response.status, json.loads(raw), {name.lower(): value for name, value in response.getheaders()}

    def predict(self, token: str | None, *headers: tuple[str, str], path: str = PREDICT) -> tuple[int, Any, dict[str, str]]:
        return self.call("POST", path, token, BODY, ("content-type", "application/json"), *headers)

    def issue(self, *models: str, tenant: str = "acme", **limits: Any) -> str:
        token, _ = tokens.issue(self.project, tenant, models, HOUR, **limits)
        return token

    def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def refresh(self) -> None:
        gateway.reload_tokens(self.project.using(self.settings))


@pytest.fixture(scope="module")
def gateway_project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProject]:
    root = tmp_path_factory.mktemp("access")
    (root / "recipes").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(gateway_port=ports[0], gateway_admin_port=ports[1])
        runner = ProcessRunner(project.using(settings), echo_command)
        try:
            for model in ("digits", "flights"):
                rolling.roll_out(ReplicaSpec(model, "3", "good"), 1, project.using(settings), runner, lambda line: None)
            yield GatewayProject(project, settings)
            assert rejected(project) == {}
            assert "deprecated" not in supervisor.tail(supervisor.log_path(project, "envoy"), 1000).lower()
        finally:
            supervisor.shutdown(project, stop_seconds=2.0)
            assert supervisor.supervised_processes(project) == []


def rejected(project: Project) -> dict[str, int]:
    """Updates that Envoy rejected, by the name of the counter."""
    answer = admin.ask(project, "/stats?format=json&filter=update_rejected")
    assert answer is not None
    return {stat["name"]: stat["value"] for stat in answer.json()["stats"] if stat["value"]}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "headrace", "sub": "acme", "jti": "x", "iat": now, "exp": now + HOUR, "models": ["digits"], **changes}


def signed(gateway_project: GatewayProject, kid: str | None = None, key: Any = None, **changes: Any) -> str:
    own_kid, own_key = keys.signing_key(gateway_project.project)
    return jwt.encode(claims(**changes), key or own_key, algorithm="EdDSA", headers={"kid": kid or own_kid})


def by_hand(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library would make: signed with HMAC, or not at all."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    message = b".".join(parts)
    mac = hmac.new(secret, message, hashlib.sha256).digest() if secret is not None else b""
    return (message + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def wrong_tokens(gateway_project: GatewayProject) -> dict[str, str | None]:
    kid, key = keys.signing_key(gateway_project.project)
    raw = key.public_key().public_bytes_raw()
    (jwk,) = (one for one in keys.public_keys(gateway_project.project) if one["kid"] == kid)
    good = signed(gateway_project)
    past = int(time.time()) - HOUR
    return {
        "none": None,
        "empty": "",
        "no JWT": "abc",
        "cut": good[:-20],
        "changed": good[: good.index(".") + 5]
        + ("A" if good[good.index(".") + 5] != "A" else "B")
        + good[good.index(".") + 6 :],
        "expired": signed(gateway_project, iat=past, exp=past + 60),
        "without an end": jwt.encode(
            {k: v for k, v in claims().items() if k != "exp"}, key, algorithm="EdDSA", headers={"kid": kid}
        ),
        "another issuer": signed(gateway_project, iss="somebody"),
        "another key's": signed(gateway_project, key=Ed25519PrivateKey.generate()),
        "an unknown key's": signed(gateway_project, kid="unknown", key=Ed25519PrivateKey.generate()),
        "alg none": by_hand({"alg": "none", "kid": kid}, claims(), None),
        "HMAC with the public key": by_hand({"alg": "HS256", "kid": kid}, claims(), raw),
        "HMAC with the public key as text": by_hand({"alg": "HS256", "kid": kid}, claims(), jwk["x"].encode()),
    }


def shape(answer: tuple[int, Any, dict[str, str]]) -> Any:
    """An answer without the parts that differ between requests."""
    status, body, headers = answer
    assert body.pop("request_id") == headers["x-request-id"]
    return status, body, sorted(headers.items() - {(name, headers.get(name)) for name in ("date", "x-request-id")})


UNAUTHORIZED = {"error": {"code": "unauthorized", "message": "a valid token is needed: authorization: Bearer ..."}}
FORBIDDEN = {"error": {"code": "forbidden", "message": "this token does not allow this"}}


def test_every_wrong_token_gets_the_same_refusal_and_a_valid_one_is_accepted(gateway_project: GatewayProject) -> None:
    answers = {name: gateway_project.predict(token) for name, token in wrong_tokens(gateway_project).items()}
    assert {name: answer[0] for name, answer in answers.items()} == dict.fromkeys(answers, 401)
    shapes = {name: shape(answer) for name, answer in answers.items()}
    assert all(found == shapes["none"] for found in shapes.values())
    _, body, headers = shapes["none"]
    assert body == UNAUTHORIZED
    assert ("www-authenticate", "Bearer") in headers
    assert gateway_project.predict(signed(gateway_project))[0] == 200
    assert gateway_project.predict(signed(gateway_project, exp=int(time.time()) - 30))[0] == 200, (
        "clocks may differ by a minute"
    )


@pytest.mark.parametrize(
    ("scheme", "status"), [("Bearer", 200), ("bearer", 200), ("BEARER", 200), ("bEARER", 200), ("Basic", 401), ("xBearer", 401)]
)
def test_the_scheme_of_a_token_is_compared_without_its_case(gateway_project: GatewayProject, scheme: str, status: int) -> None:
    found, body, _ = gateway_project.predict(None, ("authorization", f"{scheme} {signed(gateway_project)}"))
    assert found == status
    assert status == 200 or body["error"] == UNAUTHORIZED["error"]


def test_a_token_in_the_url_is_ignored(gateway_project: GatewayProject) -> None:
    assert gateway_project.predict(None, path=f"{PREDICT}?access_token={signed(gateway_project)}")[0] == 401


def test_another_model_and_one_that_does_not_exist_get_the_same_refusal(gateway_project: GatewayProject) -> None:
    token = gateway_project.issue("digits")
    paths = [
        "/v1/models/flights/predict",
        "/v1/models/zebra/predict",
        "/v1/models/digits-2/predict",
        "/v2/models/flights/infer",
        "/v2/models/zebra/infer",
        "/v1/models/flights/batches",
        "/v1/models/zebra/batches",
        "/nothing",
    ]
    shapes = [shape(gateway_project.predict(token, path=path)) for path in paths]
    assert shapes[0][:2] == (403, FORBIDDEN)
    assert all(found == shapes[0] for found in shapes)
    assert gateway_project.predict(token)[1]["model"] == "digits"
    assert gateway_project.predict(token, path="/v2/models/digits/infer")[1]["path"] == "/v2/models/digits/infer"


def test_a_token_for_all_models_learns_which_models_are_served(gateway_project: GatewayProject) -> None:
    status, body, _ = gateway_project.predict(gateway_project.issue("*"), path="/v1/models/zebra/predict")
    assert status == 404
    assert body["error"]["message"].endswith("models served: digits, flights")
    assert gateway_project.predict(gateway_project.issue("*"), path="/v1/models/flights/predict")[0] == 200


def test_an_ambiguous_path_is_refused(gateway_project: GatewayProject) -> None:
    token = gateway_project.issue("digits")
    for path in ("/v1/models/digits%2f..%2fflights/predict", "/v1/models/digits/%2e%2e%2fflights/predict"):
        assert gateway_project.predict(token, path=path)[0] == 400
    assert gateway_project.predict(token, path="/v1/models/digits/../flights/predict")[0] == 403


def test_health_needs_no_token_and_metrics_are_not_served(gateway_project: GatewayProject) -> None:
    assert gateway_project.call("GET", "/readyz")[:2] == (200, {"ready": True})
    assert gateway_project.call("GET", "/metrics")[0] == 401
    assert gateway_project.call("GET", "/metrics", gateway_project.issue("*"))[0] == 404


def test_a_revoked_token_is_refused_within_seconds_like_any_wrong_one(gateway_project: GatewayProject) -> None:
    token, other = gateway_project.issue("digits", tenant="leaver"), gateway_project.issue("digits", tenant="stayer")
    assert gateway_project.predict(token)[0] == 200
    kept = http.client.HTTPConnection("127.0.0.1", gateway_project.settings.gateway_port, timeout=20)

    def status_on_an_open_connection() -> int:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        kept.request("POST", PREDICT, BODY, headers)
        response = kept.getresponse()
        response.read()
        return response.status

    assert status_on_an_open_connection() == 200
    tokens.revoke(gateway_project.project, "leaver")
    gateway_project.refresh()
    gateway_project.until(lambda: gateway_project.predict(token)[0] != 200, seconds=5)
    assert status_on_an_open_connection() == 401
    kept.close()
    assert shape(gateway_project.predict(token)) == shape(gateway_project.predict(None))
    assert gateway_project.predict(other)[0] == 200


def test_a_model_is_named_by_the_body_where_the_path_names_none(gateway_project: GatewayProject) -> None:
    token = gateway_project.issue("digits")
    for path in ("/v1/completions", "/v1/chat/completions"):

        def ask(body: bytes, kind: str = "application/json", by: str = token, path: str = path) -> tuple[int, Any]:
            return gateway_project.call("POST", path, by, body, ("content-type", kind))[:2]

        status, answer = ask(
            json.dumps({"model": "digits", "prompt": "x" * 5_000_000}).encode(), "application/json; charset=utf-8"
        )
        assert (status, answer["model"], answer["path"]) == (200, "digits", path)
        assert answer["bytes"] > 5_000_000
        large = b'{"model": "digits", "prompt": "' + b"x" * (16 << 20)
        status, answer = ask(large)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert answer["error"]["message"] == "the request's body is larger than 16,777,216 bytes"
        everything = gateway_project.issue("*")
        assert ask(b'{"model": "flights"}', by=everything)[1]["model"] == "flights"
        refused = [
            b'{"model": "flights"}',
            b'{"model": "zebra"}',
            b'{"model": ["digits"]}',
            b'{"model": {"x": "digits"}}',
            b'{"prompt": "x"}',
            b'{"model": "digits"',
            b"",
        ]
        assert [ask(body)[0] for body in refused] == [403] * len(refused)
        assert ask(b'{"model": "digits"}', "text/plain")[0] == 403
        status, answer = ask(b'{"model": "zebra"}', by=everything)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
        assert "digits" in answer["error"]["message"]


def test_a_body_that_names_two_models_counts_as_one_of_them(gateway_project: GatewayProject) -> None:
    """Whichever counts, a token without that model is refused."""
    body = b'{"model": "digits", "model": "flights"}'
    kind = ("content-type", "application/json")
    found = gateway_project.call("POST", "/v1/completions", gateway_project.issue("*"), body, kind)[1]["model"]
    other = {"digits": "flights", "flights": "digits"}[found]
    assert gateway_project.call("POST", "/v1/completions", gateway_project.issue(other), body, kind)[0] == 403


def test_one_tenants_flood_is_limited_and_another_tenant_is_not(gateway_project: GatewayProject) -> None:
    flood, calm = (
        gateway_project.issue("digits", tenant="flood", rate=5.0),
        gateway_project.issue("digits", tenant="calm", rate=1000.0),
    )
    gateway_project.refresh()
    gateway_project.until(lambda: "x-ratelimit-limit" in gateway_project.predict(calm)[2])
    answers = [gateway_project.predict(flood) for _ in range(40)]
    statuses = Counter(answer[0] for answer in answers)
    assert statuses.keys() == {200, 429} and statuses[429] >= 20
    _, body, headers = next(answer for answer in answers if answer[0] == 429)
    assert body["error"]["code"] == "too_many_requests"
    assert int(headers["retry-after"]) >= 1
    assert all("retry-after" not in headers for status, _, headers in answers if status == 200)
    assert headers["x-ratelimit-limit"].startswith("5")
    assert headers["x-ratelimit-remaining"] == "0"
    assert all(gateway_project.predict(calm)[0] == 200 for _ in range(20))
    # No header of a client moves it into another tenant's bucket.
    claimed = [
        gateway_project.predict(flood, (name, "calm"))
        for name in ("x-tenant", "x-headrace-tenant", "tenant")
        for _ in range(10)
    ]
    assert Counter(answer[0] for answer in claimed)[429] >= 10


def test_a_low_rate_gets_the_seconds_until_the_next_request(gateway_project: GatewayProject) -> None:
    slow = gateway_project.issue("digits", tenant="slow", rate=1 / 300)
    gateway_project.refresh()
    gateway_project.until(lambda: gateway_project.predict(slow)[0] == 429)
    _, _, headers = gateway_project.predict(slow)
    assert headers["retry-after"] == headers["x-ratelimit-reset"]
    assert 200 < int(headers["retry-after"]) <= 300


@pytest.mark.parametrize("rate", [2.5, 1 / 6, 0.7, 123456.0, tokens.MIN_RATE, tokens.MAX_RATE])
def test_envoy_accepts_every_rate(gateway_project: GatewayProject, rate: float) -> None:
    token = gateway_project.issue("digits", tenant=f"rate-{rate}", rate=rate)
    gateway_project.refresh()
    limit = f"{max(1, math.ceil(rate))}"
    gateway_project.until(lambda: gateway_project.predict(token)[2].get("x-ratelimit-limit", "").split(",")[0] == limit)


def test_two_authorization_headers_grant_no_more_than_one(gateway_project: GatewayProject) -> None:
    poor, rich = gateway_project.issue("digits"), gateway_project.issue("*")
    for first, second in ((poor, rich), (rich, poor), ("abc", rich)):
        status = gateway_project.predict(first, ("authorization", f"Bearer {second}"), path="/v1/models/flights/predict")[0]
        assert status in (400, 401, 403)


def test_too_many_and_too_long_headers_are_refused(gateway_project: GatewayProject) -> None:
    token = gateway_project.issue("digits")
    with_many = [(f"x-{i}", "1") for i in range(150)]
    assert gateway_project.predict(token)[0] == 200
    for headers in (with_many, [("x-long", "x" * 40_000)]):
        connection = http.client.HTTPConnection("127.0.0.1", gateway_project.settings.gateway_port, timeout=20)
        connection.request("GET", "/v1/models/digits", headers={"authorization": f"Bearer {token}", **dict(headers)})
        assert connection.getresponse().status in (400, 431)
        connection.close()


def test_the_body_of_a_request_without_token_is_not_read(gateway_project: GatewayProject) -> None:
    """It is refused by its headers, before any of its 10 MB arrive."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway_project.settings.gateway_port, timeout=20)
    connection.putrequest("POST", PREDICT)
    connection.putheader("content-length", str(10 << 20))
    connection.endheaders(b"{")
    assert connection.getresponse().status == 401
    connection.close()


def test_key_rotation_keeps_old_tokens_valid_without_a_lost_request(gateway_project: GatewayProject) -> None:
    old = gateway_project.issue("digits")
    statuses: Counter[int] = Counter()
    stopped = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", gateway_project.settings.gateway_port, timeout=20)
        headers = {"authorization": f"Bearer {old}", "content-type": "application/json"}
        while not stopped.is_set():
            connection.request("POST", PREDICT, BODY, headers)
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
        connection.close()

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(ask) for _ in range(2)]
        try:
            tokens.rotate(gateway_project.project)
            gateway_project.refresh()
            new = gateway_project.issue("digits")
            gateway_project.until(lambda: gateway_project.predict(new)[0] == 200)
            asked = statuses[200]
            gateway_project.until(lambda: statuses[200] > asked + 20)
        finally:
            stopped.set()
        for client in clients:
            client.result()
    assert statuses.keys() == {200}
    assert gateway_project.predict(old)[0] == 200


def test_a_refused_request_reaches_no_replica(gateway_project: GatewayProject) -> None:
    gateway_project.call("POST", "/v1/models/digits/echo", None, b"", ("x-request-id", "anonymous"))
    gateway_project.call(
        "POST", "/v1/models/digits/echo", gateway_project.issue("flights"), b"", ("x-request-id", "other-model")
    )
    seen = gateway_project.call(
        "POST", "/v1/models/digits/seen", gateway_project.issue("digits"), b"", ("x-request-id", "permitted")
    )[1]["seen"]
    assert "permitted" in seen and not {"anonymous", "other-model"} & set(seen)


def test_issuing_a_token_in_a_shell_with_other_settings_does_not_change_the_gateway(gateway_project: GatewayProject) -> None:
    token = gateway_project.issue("digits")
    elsewhere = Settings(gateway_port=gateway_project.settings.gateway_port + 1, access="open", request_seconds=1.0)
    gateway.reload_tokens(gateway_project.project.using(elsewhere))
    gateway_project.until(lambda: gateway_project.predict(token)[0] == 200)
    assert gateway_project.predict(None)[0] == 401
    assert envoy_process.is_ready(gateway_project.project.using(gateway_project.settings))


def test_envoys_administration_is_for_this_user_alone(gateway_project: GatewayProject) -> None:
    admin_socket = gateway_project.project.gateway_admin
    assert (stat.S_IMODE(admin_socket.stat().st_mode), stat.S_IMODE(admin_socket.parent.stat().st_mode)) == (0o600, 0o700)
    assert admin.ask(gateway_project.project, "/ready") is not None
    address = ("127.0.0.1", gateway_project.settings.gateway_admin_port)
    everything = operator_token(gateway_project.project)
    for path in (
        "/",
        "/config_dump",
        "/quitquitquit",
        "/clusters",
        "/stats",
        "/stats/prometheus/../../config_dump",
        "/%2fstats",
    ):
        for method in ("GET", "POST"):
            for token in (None, everything):
                assert local_http.request(address, path, method=method, token=token).status in (400, 401, 403, 404), path
    assert local_http.request(address, "/stats/prometheus", method="POST", token=everything).status in (403, 404)


def test_prometheus_needs_a_token_for_all_models(gateway_project: GatewayProject) -> None:
    address, path = ("127.0.0.1", gateway_project.settings.gateway_admin_port), "/stats/prometheus"
    assert local_http.request(address, path).status == 401
    assert local_http.request(address, path, token=signed(gateway_project)).status == 403
    found = local_http.request(address, path, token=operator_token(gateway_project.project))
    assert found.status == 200 and 'envoy_cluster_name="digits"' in found.text
    replica = gateway.endpoints_by_model(gateway_project.project)["digits"][0]
    path = f"/replicas/{replica.id}/metrics"
    assert local_http.request(address, path).status == 401
    assert local_http.request(address, path, token=signed(gateway_project)).status == 403
    assert local_http.request(address, path, token=operator_token(gateway_project.project)).status == 503, "no API server"
    assert gateway_project.call("GET", path, operator_token(gateway_project.project))[0] == 404, "not on the gateway's port"


@needs_root
def test_another_user_cannot_reach_envoys_administration(gateway_project: GatewayProject) -> None:
    admin_socket = gateway_project.project.gateway_admin

    def connect() -> str:
        try:
            local_http.request(admin_socket, "/ready")
        except OSError as error:
            return type(error).__name__
        return "connected"

    assert as_other_user(connect) == "PermissionError"
    assert connect() == "connected"

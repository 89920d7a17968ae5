"""Who comes through the door, held against a real Envoy with two models of one echo replica each."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import math
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from headrace.project import Project
from headrace.serving.access import keys, tokens
from headrace.serving.gateway import gateway
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.ports import lease
from tests.serving.support import echo_command

PREDICT = "/v1/models/digits/predict"
BODY = json.dumps({"instances": [{}]}).encode()
HOUR = 3600


@dataclass
class House:
    """A project whose door asks for tokens."""

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

    def until(self, true: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def refresh(self) -> None:
        gateway.refresh(self.project, self.settings)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    (root / "recipes").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(
            gateway_port=ports[0], gateway_admin_port=ports[1], api_port=ports[2], replica_ports=(ports[4], ports[-1])
        )
        runner = ProcessRunner(project, echo_command, settings)
        try:
            for model in ("digits", "flights"):
                rolling.roll_out(ReplicaSpec(model, "3", "good"), 1, project, settings, runner, lambda line: None)
            yield House(project, settings)
            assert rejected(settings) == {}
            assert "deprecated" not in supervisor.tail(supervisor.log_path(project, "envoy"), 1000).lower()
        finally:
            supervisor.shutdown(project, stop_seconds=2.0)
            assert supervisor.marked(project) == []


def rejected(settings: Settings) -> dict[str, int]:
    """What Envoy has not taken of all that was written for it."""
    url = f"http://127.0.0.1:{settings.gateway_admin_port}/stats?format=json&filter=update_rejected"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return {stat["name"]: stat["value"] for stat in json.load(answer)["stats"] if stat["value"]}


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"iss": "headrace", "sub": "acme", "jti": "x", "iat": now, "exp": now + HOUR, "models": ["digits"], **changes}


def signed(house: House, kid: str | None = None, key: Any = None, **changes: Any) -> str:
    own_kid, own_key = keys.current(house.project)
    return jwt.encode(claims(**changes), key or own_key, algorithm="EdDSA", headers={"kid": kid or own_kid})


def by_hand(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None) -> str:
    """A token that no library would make: signed by HMAC, or not at all."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    message = b".".join(parts)
    mac = hmac.new(secret, message, hashlib.sha256).digest() if secret is not None else b""
    return (message + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


def wrong_tokens(house: House) -> dict[str, str | None]:
    kid, key = keys.current(house.project)
    raw = key.public_key().public_bytes_raw()
    (jwk,) = (one for one in keys.public_keys(house.project) if one["kid"] == kid)
    good = signed(house)
    past = int(time.time()) - HOUR
    return {
        "none": None,
        "empty": "",
        "no JWT": "abc",
        "cut": good[:-20],
        "changed": good[: good.index(".") + 5]
        + ("A" if good[good.index(".") + 5] != "A" else "B")
        + good[good.index(".") + 6 :],
        "expired": signed(house, iat=past, exp=past + 60),
        "without an end": jwt.encode(
            {k: v for k, v in claims().items() if k != "exp"}, key, algorithm="EdDSA", headers={"kid": kid}
        ),
        "another issuer": signed(house, iss="somebody"),
        "another key's": signed(house, key=Ed25519PrivateKey.generate()),
        "an unknown key's": signed(house, kid="unknown", key=Ed25519PrivateKey.generate()),
        "alg none": by_hand({"alg": "none", "kid": kid}, claims(), None),
        "HMAC with the public key": by_hand({"alg": "HS256", "kid": kid}, claims(), raw),
        "HMAC with the public key as text": by_hand({"alg": "HS256", "kid": kid}, claims(), jwk["x"].encode()),
    }


def shape(answer: tuple[int, Any, dict[str, str]]) -> Any:
    """An answer without what differs from one request to the next."""
    status, body, headers = answer
    assert body.pop("request_id") == headers["x-request-id"]
    return status, body, sorted(headers.items() - {(name, headers.get(name)) for name in ("date", "x-request-id")})


UNAUTHORIZED = {"error": {"code": "unauthorized", "message": "a valid token is needed: authorization: Bearer ..."}}
FORBIDDEN = {"error": {"code": "forbidden", "message": "this token does not allow this"}}


def test_every_wrong_token_is_refused_alike_and_a_good_one_let_in(house: House) -> None:
    answers = {name: house.predict(token) for name, token in wrong_tokens(house).items()}
    assert {name: answer[0] for name, answer in answers.items()} == dict.fromkeys(answers, 401)
    shapes = {name: shape(answer) for name, answer in answers.items()}
    assert all(found == shapes["none"] for found in shapes.values())
    _, body, headers = shapes["none"]
    assert body == UNAUTHORIZED
    assert ("www-authenticate", "Bearer") in headers
    assert house.predict(signed(house))[0] == 200
    assert house.predict(signed(house, exp=int(time.time()) - 30))[0] == 200, "clocks may differ by a minute"


def test_a_token_in_the_address_opens_nothing(house: House) -> None:
    assert house.predict(None, path=f"{PREDICT}?access_token={signed(house)}")[0] == 401


def test_another_model_and_one_that_does_not_exist_are_refused_alike(house: House) -> None:
    token = house.issue("digits")
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
    shapes = [shape(house.predict(token, path=path)) for path in paths]
    assert shapes[0][:2] == (403, FORBIDDEN)
    assert all(found == shapes[0] for found in shapes)
    assert house.predict(token)[1]["model"] == "digits"
    assert house.predict(token, path="/v2/models/digits/infer")[1]["path"] == "/v2/models/digits/infer"


def test_who_may_call_all_models_is_told_which_there_are(house: House) -> None:
    status, body, _ = house.predict(house.issue("*"), path="/v1/models/zebra/predict")
    assert status == 404
    assert body["error"]["message"].endswith("models served: digits, flights")
    assert house.predict(house.issue("*"), path="/v1/models/flights/predict")[0] == 200


def test_a_path_that_another_reader_may_read_otherwise_is_refused(house: House) -> None:
    token = house.issue("digits")
    for path in ("/v1/models/digits%2f..%2fflights/predict", "/v1/models/digits/%2e%2e%2fflights/predict"):
        assert house.predict(token, path=path)[0] == 400
    assert house.predict(token, path="/v1/models/digits/../flights/predict")[0] == 403


def test_health_needs_no_token_and_metrics_are_not_served(house: House) -> None:
    assert house.call("GET", "/readyz")[:2] == (200, {"ready": True})
    assert house.call("GET", "/metrics")[0] == 401
    assert house.call("GET", "/metrics", house.issue("*"))[0] == 404


def test_a_revoked_token_is_refused_within_seconds_like_any_wrong_one(house: House) -> None:
    token, other = house.issue("digits", tenant="leaver"), house.issue("digits", tenant="stayer")
    assert house.predict(token)[0] == 200
    tokens.revoke(house.project, "leaver")
    house.refresh()
    house.until(lambda: house.predict(token)[0] != 200, seconds=5)
    assert shape(house.predict(token)) == shape(house.predict(None))
    assert house.predict(other)[0] == 200


def test_a_model_is_named_by_the_body_where_the_path_names_none(house: House) -> None:
    token = house.issue("digits")
    for path in ("/v1/completions", "/v1/chat/completions"):

        def ask(body: bytes, kind: str = "application/json", by: str = token, path: str = path) -> tuple[int, Any]:
            return house.call("POST", path, by, body, ("content-type", kind))[:2]

        status, answer = ask(
            json.dumps({"model": "digits", "prompt": "x" * 5_000_000}).encode(), "application/json; charset=utf-8"
        )
        assert (status, answer["model"], answer["path"]) == (200, "digits", path)
        assert answer["bytes"] > 5_000_000
        large = b'{"model": "digits", "prompt": "' + b"x" * (16 << 20)
        status, answer = ask(large)
        assert (status, answer["error"]["code"]) == (413, "too_large")
        assert answer["error"]["message"] == "the request's body is larger than 16,777,216 bytes"
        everything = house.issue("*")
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


def test_a_body_that_names_two_models_opens_neither_more_nor_less_than_one_of_them(house: House) -> None:
    """Whichever of the two counts, a token without it is refused."""
    body = b'{"model": "digits", "model": "flights"}'
    kind = ("content-type", "application/json")
    found = house.call("POST", "/v1/completions", house.issue("*"), body, kind)[1]["model"]
    other = {"digits": "flights", "flights": "digits"}[found]
    assert house.call("POST", "/v1/completions", house.issue(other), body, kind)[0] == 403


def test_a_flood_of_one_tenant_is_limited_and_another_passes(house: House) -> None:
    flood, calm = house.issue("digits", tenant="flood", rate=5.0), house.issue("digits", tenant="calm", rate=1000.0)
    house.refresh()
    house.until(lambda: "x-ratelimit-limit" in house.predict(calm)[2])
    answers = [house.predict(flood) for _ in range(40)]
    statuses = Counter(answer[0] for answer in answers)
    assert statuses.keys() == {200, 429} and statuses[429] >= 20
    _, body, headers = next(answer for answer in answers if answer[0] == 429)
    assert body["error"]["code"] == "too_many_requests"
    assert int(headers["retry-after"]) >= 1
    assert all("retry-after" not in headers for status, _, headers in answers if status == 200)
    assert headers["x-ratelimit-limit"].startswith("5")
    assert headers["x-ratelimit-remaining"] == "0"
    assert all(house.predict(calm)[0] == 200 for _ in range(20))
    # Nothing that a client says of itself moves it into another tenant's bucket.
    claimed = [house.predict(flood, (name, "calm")) for name in ("x-tenant", "x-headrace-tenant", "tenant") for _ in range(10)]
    assert Counter(answer[0] for answer in claimed)[429] >= 10


def test_a_slow_rate_is_told_when_there_is_more(house: House) -> None:
    slow = house.issue("digits", tenant="slow", rate=1 / 300)
    house.refresh()
    house.until(lambda: house.predict(slow)[0] == 429)
    _, _, headers = house.predict(slow)
    assert headers["retry-after"] == headers["x-ratelimit-reset"]
    assert 200 < int(headers["retry-after"]) <= 300


@pytest.mark.parametrize("rate", [2.5, 1 / 6, 0.7, 123456.0, tokens.SLOWEST, tokens.FASTEST])
def test_any_rate_is_one_that_envoy_takes(house: House, rate: float) -> None:
    token = house.issue("digits", tenant=f"rate-{rate}", rate=rate)
    house.refresh()
    limit = f"{max(1, math.ceil(rate))}"
    house.until(lambda: house.predict(token)[2].get("x-ratelimit-limit", "").split(",")[0] == limit)


def test_two_authorization_headers_are_never_better_than_one(house: House) -> None:
    poor, rich = house.issue("digits"), house.issue("*")
    for first, second in ((poor, rich), (rich, poor), ("abc", rich)):
        status = house.predict(first, ("authorization", f"Bearer {second}"), path="/v1/models/flights/predict")[0]
        assert status in (400, 401, 403)


def test_too_many_and_too_long_headers_are_refused(house: House) -> None:
    token = house.issue("digits")
    with_many = [(f"x-{i}", "1") for i in range(150)]
    assert house.predict(token)[0] == 200
    for headers in (with_many, [("x-long", "x" * 40_000)]):
        connection = http.client.HTTPConnection("127.0.0.1", house.settings.gateway_port, timeout=20)
        connection.request("GET", "/v1/models/digits", headers={"authorization": f"Bearer {token}", **dict(headers)})
        assert connection.getresponse().status in (400, 431)
        connection.close()


def test_a_strangers_body_is_not_waited_for(house: House) -> None:
    """Refused by its headers: nothing of its 10 MB has to come."""
    connection = http.client.HTTPConnection("127.0.0.1", house.settings.gateway_port, timeout=20)
    connection.putrequest("POST", PREDICT)
    connection.putheader("content-length", str(10 << 20))
    connection.endheaders(b"{")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_new_key_signs_and_the_old_ones_tokens_stay_good_without_a_lost_request(house: House) -> None:
    old = house.issue("digits")
    statuses: Counter[int] = Counter()
    stopped = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", house.settings.gateway_port, timeout=20)
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
            tokens.rotate(house.project)
            house.refresh()
            new = house.issue("digits")
            house.until(lambda: house.predict(new)[0] == 200)
            asked = statuses[200]
            house.until(lambda: statuses[200] > asked + 20)
        finally:
            stopped.set()
        for client in clients:
            client.result()
    assert statuses.keys() == {200}
    assert house.predict(old)[0] == 200


def test_a_refused_request_reaches_no_replica(house: House) -> None:
    house.call("POST", "/v1/models/digits/echo", None, b"", ("x-request-id", "stranger"))
    house.call("POST", "/v1/models/digits/echo", house.issue("flights"), b"", ("x-request-id", "neighbour"))
    seen = house.call("POST", "/v1/models/digits/seen", house.issue("digits"), b"", ("x-request-id", "friend"))[1]["seen"]
    assert "friend" in seen and not {"stranger", "neighbour"} & set(seen)


def test_a_token_issued_in_a_shell_with_other_settings_moves_nothing(house: House) -> None:
    token = house.issue("digits")
    elsewhere = Settings(gateway_port=house.settings.gateway_port + 1, access="open", request_seconds=1.0)
    gateway.refresh(house.project, elsewhere)
    house.until(lambda: house.predict(token)[0] == 200)
    assert house.predict(None)[0] == 401
    assert gateway.is_open(house.project, house.settings)

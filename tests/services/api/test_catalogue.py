"""The catalogue: what is served, who may see it, and what errors look like."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from headrace.serving.local_http import request
from tests.services.api.server import LocalService


def get(service: LocalService, path: str, token: str | None = None) -> httpx.Response:
    return httpx.get(service.gateway + path, headers={"authorization": f"Bearer {token}"} if token else {}, timeout=20)


def refusal(response: httpx.Response) -> Any:
    """The body without what differs from request to request."""
    body = response.json()
    assert body.pop("request_id") == response.headers["x-request-id"]
    return body


def test_the_catalogue_describes_the_models_of_the_token(
    service: LocalService,
) -> None:
    with service.client("acme", "trips", "letters") as client:
        letters, trips = client.models()
        assert (trips["model"], trips["versions"], trips["traffic"]) == ("trips", ["1"], {"1": 100.0})
        assert trips["health"] == {"ready": 1, "total": 1}
        assert trips["contract"] == client.describe("trips")["contract"]
        assert not trips["streams"] and letters["streams"]
        assert "openai" in letters["protocols"] and "openai" not in trips["protocols"]
        assert trips["protocols"]["headrace"]["batches"] == "/v1/models/trips/batches"


def test_openai_s_client_lists_the_text_generation_models_of_the_token(service: LocalService) -> None:
    with openai.OpenAI(base_url=f"{service.gateway}/v1", api_key=service.token("acme", "trips", "letters")) as client:
        (listed,) = client.models.list()
        assert (listed.id, listed.object) == ("letters", "model")
        assert client.models.retrieve("letters").created == listed.created > 0
    with openai.OpenAI(base_url=f"{service.gateway}/v1", api_key=service.token("acme", "trips")) as client:
        assert list(client.models.list()) == []


def test_a_token_for_all_models_sees_all_and_one_for_an_unserved_model_sees_none(service: LocalService) -> None:
    with service.client("ops", "*") as client:
        assert [model["model"] for model in client.models()] == ["halves", "letters", "trips"]
    with service.client("acme", "elsewhere") as client:
        assert client.models() == []


@pytest.mark.parametrize("path", ["/v1/models", "/openapi.json", "/v1/models/trips/batches"])
@pytest.mark.parametrize("token", [None, "nonsense", "a.b.c"])
def test_nothing_is_revealed_without_a_valid_token(service: LocalService, path: str, token: str | None) -> None:
    response = get(service, path, token)
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert refusal(response)["error"]["code"] == "unauthorized"


def test_the_api_server_requires_a_token_also_without_the_gateway(service: LocalService) -> None:
    with service.direct() as direct:
        assert direct.get("/v1/models").status_code == direct.get("/openapi.json").status_code == 401


def test_batches_of_another_model_and_of_an_unknown_one_are_refused_alike(service: LocalService) -> None:
    token = service.token("acme", "halves")
    there, nowhere = (get(service, f"/v1/models/{model}/batches", token) for model in ("trips", "nothing"))
    assert there.status_code == nowhere.status_code == 403
    assert refusal(there) == refusal(nowhere)
    with service.direct() as direct:
        around = direct.get("/v1/models/trips/batches", headers={"authorization": f"Bearer {token}"})
    assert around.status_code == 403
    assert refusal(around) == refusal(there)


def test_prometheus_reads_each_replica_through_the_port_of_metrics_with_a_token_for_all_models(service: LocalService) -> None:
    address = ("127.0.0.1", service.settings.gateway_admin_port)
    groups = json.loads((service.project.gateway / "targets.json").read_text())
    assert {group["labels"]["model"] for group in groups} == set(service.models)
    for group in groups:
        assert group["targets"] == [f"{address[0]}:{address[1]}"]
        path = group["labels"]["__metrics_path__"]
        found = request(address, path, token=service.token("ops", "*"))
        assert (found.status, found.content_type) == (200, "text/plain")
        assert f'model="{group["labels"]["model"]}"' in found.text
        assert request(address, path).status == 401
    assert request(address, "/replicas/other/metrics", token=service.token("ops", "*")).status == 404
    looked = request(address, "/monitoring/metrics", token=service.token("ops", "*"))
    assert (looked.status, looked.content_type) == (200, "text/plain") and "headrace_monitor_alarm" in looked.text
    assert request(address, "/monitoring/metrics").status == 401
    with service.direct() as direct:
        metrics = direct.get("/monitoring/metrics", headers={"authorization": f"Bearer {service.token('acme', 'trips')}"})
        assert metrics.status_code == 403
        for token, status in ((service.token("acme", "trips"), 403), ("x", 401)):
            assert direct.get(path, headers={"authorization": f"Bearer {token}"}).status_code == status


@pytest.mark.parametrize(("path", "body"), [("/v2/health/live", {"live": True}), ("/v2/health/ready", {"ready": True})])
def test_health_needs_no_token(service: LocalService, path: str, body: dict[str, bool]) -> None:
    response = get(service, path)
    assert (response.status_code, response.json()) == (200, body)


def test_the_page_of_the_description_loads_nothing_from_other_servers(service: LocalService) -> None:
    response = get(service, "/docs")
    assert response.status_code == 200
    assert "sha256-" in response.headers["content-security-policy"]
    assert "//" not in response.text.replace("://", "").split("<script>")[0]
    assert "http" not in response.text.split("<script>")[0]


def test_unknown_paths_and_methods_are_errors(service: LocalService) -> None:
    headers = {"authorization": f"Bearer {service.token('ops', '*')}"}
    with service.direct() as direct:
        assert direct.get("/v1/nothing", headers=headers).json()["error"]["code"] == "not_found"
        refused = direct.put("/v1/feedback", headers=headers)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_models_with_explanations_offer_them_and_the_client_requests_them(service: LocalService) -> None:
    with service.client("acme", "trips", "letters") as client:
        letters, trips = client.models()
        assert "explain" in trips["protocols"]["headrace"] and "explain" not in letters["protocols"]["headrace"]
        found = client.explain("trips", {"distance": 5, "carrier": "BB"}, baseline={"distance": 1, "carrier": "AA"})
    assert (found.value, found.base_value) == (30.0, 12.0)
    assert found.attributions == pytest.approx({"distance": 8.0, "carrier": 10.0})

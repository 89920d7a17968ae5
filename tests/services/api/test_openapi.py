"""Compares the OpenAPI description with the real service: schemathesis generates valid and invalid requests from it."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from headrace.serving.access import tokens
from tests.services.api.server import LocalService

EXAMPLES = 6
"""Requests an operation and a way to make them."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
FILES = ("application/vnd.apache.parquet", "application/x-ndjson")


@schemathesis.serializer(*FILES)
def as_it_is(_: object, value: Any) -> bytes:
    """The bytes of a file; other generated values as text."""
    return bytes(value) if isinstance(value, bytes) else bytes(value.data if hasattr(value, "data") else str(value).encode())


bounded = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def token(service: LocalService) -> str:
    return service.token("tester", "trips", "halves", "letters")


@pytest.fixture(scope="module")
def described(service: LocalService, token: str) -> Any:
    response = httpx.get(f"{service.gateway}/openapi.json", headers={"authorization": f"Bearer {token}"}, timeout=20)
    assert response.status_code == 200
    return response.json()


@pytest.fixture(scope="module")
def operations(service: LocalService, described: Any) -> list[APIOperation[Any, Any, Any, Any]]:
    """The operations of the gateway and of one model, and those that differ between models: predict, infer, explain."""
    schema: BaseSchema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=service.gateway)
    found = [found.ok() for found in schema.get_all_operations()]
    others = re.compile(r"/models/(halves|letters)(?!/(predict|infer|explain)$)")
    return [operation for operation in found if not others.search(operation.path)]


def test_requests_that_match_the_description_get_responses_that_match_it(
    operations: list[APIOperation[Any, Any, Any, Any]], token: str
) -> None:
    found = {operation.label: set(answers_to(operation, token, GenerationMode.POSITIVE)) for operation in operations}
    assert found["POST /v1/models/trips/predict"] == {200}  # every request that matches the schema is answered
    assert found["GET /v1/models"] == found["GET /v2/models/trips"] == {200}
    assert 202 in found["POST /v1/models/trips/batches"]


def test_requests_that_violate_the_description_get_errors_that_match_it(
    operations: list[APIOperation[Any, Any, Any, Any]], token: str
) -> None:
    wrong = [operation for operation in operations if operation.body or operation.path_parameters]
    found = {operation.label: set(answers_to(operation, token, GenerationMode.NEGATIVE)) for operation in wrong}
    assert found["POST /v1/models/trips/predict"] & {400, 422}
    assert found["GET /v1/models/trips/batches/{batch}"] <= {400, 401, 403, 404}
    assert found["POST /v1/feedback"] <= {400, 401, 403, 404, 422}


def test_every_example_of_the_description_works(service: LocalService, described: Any, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    tried = 0
    for path, methods in described["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            response = httpx.post(service.gateway + path, json=example["value"], headers=headers, timeout=20)
            assert response.status_code in (200, 202), f"{path}: {response.text}"
            tried += 1
    assert tried >= 3 * 3 + 1


def test_the_description_names_only_the_models_of_the_token(service: LocalService) -> None:
    headers = {"authorization": f"Bearer {service.token('narrow', 'trips')}"}
    description = httpx.get(f"{service.gateway}/openapi.json", headers=headers, timeout=20).text
    assert (
        "trips" in description
        and "halves" not in description
        and "letters" not in description
        and "completions" not in description
    )


@pytest.mark.parametrize("role", ["reviewer", "viewer"])
def test_reviews_are_described_for_roles_and_answered_as_described(service: LocalService, role: str) -> None:
    token = tokens.issue(service.project, "ada", [], 3600, role=role)[0]
    description = httpx.get(f"{service.gateway}/openapi.json", headers={"authorization": f"Bearer {token}"}, timeout=20).json()
    schema: BaseSchema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=service.gateway)
    operations = [found.ok() for found in schema.get_all_operations()]
    reviews = [one for one in operations if one.path.startswith(("/v1/candidates", "/v1/history"))]
    assert len(reviews) == 4
    right = {one.label: set(answers_to(one, token, GenerationMode.POSITIVE)) for one in reviews}
    assert right["GET /v1/candidates"] == {200}
    assert right["POST /v1/candidates/{model}/{version}/approve"] <= ({404, 409} if role == "reviewer" else {403})
    wrong = {one.label: set(answers_to(one, token, GenerationMode.NEGATIVE)) for one in reviews if one.body}
    refusals = {400, 401, 403, 404, 409, 415, 422}  # a generated request may be without the token too
    assert wrong["POST /v1/candidates/{model}/{version}/reject"] <= refusals


def test_reviews_are_not_described_for_tenants(described: Any) -> None:
    assert not [path for path in described["paths"] if path.startswith(("/v1/candidates", "/v1/history"))]


def answers_to(operation: APIOperation[Any, Any, Any, Any], token: str, mode: GenerationMode) -> list[int]:
    """Statuses of the responses to generated requests, all of which have passed the checks."""
    headers, statuses = {"authorization": f"Bearer {token}"}, []

    @bounded
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call(headers=headers)
        case.validate_response(response, checks=CHECKS, headers=headers)
        statuses.append(response.status_code)

    ask()
    return statuses

"""The OpenAPI description against the real thing: schemathesis makes requests from it, right ones and wrong ones."""

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

from tests.services.api.server import House

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
    """A file's bytes, or whatever else is made up for them, as text."""
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
def token(house: House) -> str:
    return house.token("tester", "trips", "halves", "letters")


@pytest.fixture(scope="module")
def described(house: House, token: str) -> Any:
    response = httpx.get(f"{house.door}/openapi.json", headers={"authorization": f"Bearer {token}"}, timeout=20)
    assert response.status_code == 200
    return response.json()


@pytest.fixture(scope="module")
def operations(house: House, described: Any) -> list[APIOperation[Any, Any, Any, Any]]:
    """Those of the door and of one model, and what differs from model to model: what they take and give."""
    schema: BaseSchema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=house.door)
    found = [found.ok() for found in schema.get_all_operations()]
    others = re.compile(r"/models/(halves|letters)(?!/(predict|infer|explain)$)")
    return [operation for operation in found if not others.search(operation.path)]


def test_whatever_fits_the_description_gets_an_answer_that_it_tells(
    operations: list[APIOperation[Any, Any, Any, Any]], token: str
) -> None:
    found = {operation.label: set(answers_to(operation, token, GenerationMode.POSITIVE)) for operation in operations}
    assert found["POST /v1/models/trips/predict"] == {200}  # whatever its schema allows is answered
    assert found["GET /v1/models"] == found["GET /v2/models/trips"] == {200}
    assert 202 in found["POST /v1/models/trips/batches"]


def test_whatever_does_not_fit_the_description_gets_a_refusal_that_it_tells(
    operations: list[APIOperation[Any, Any, Any, Any]], token: str
) -> None:
    wrong = [operation for operation in operations if operation.body or operation.path_parameters]
    found = {operation.label: set(answers_to(operation, token, GenerationMode.NEGATIVE)) for operation in wrong}
    assert found["POST /v1/models/trips/predict"] & {400, 422}
    assert found["GET /v1/models/trips/batches/{batch}"] <= {400, 401, 403, 404}
    assert found["POST /v1/feedback"] <= {400, 401, 403, 404, 422}


def test_every_example_of_the_description_works(house: House, described: Any, token: str) -> None:
    headers = {"authorization": f"Bearer {token}"}
    tried = 0
    for path, methods in described["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for example in content.get("application/json", {}).get("examples", {}).values():
            response = httpx.post(house.door + path, json=example["value"], headers=headers, timeout=20)
            assert response.status_code in (200, 202), f"{path}: {response.text}"
            tried += 1
    assert tried >= 3 * 3 + 1


def test_the_description_names_the_models_of_its_reader_alone(house: House) -> None:
    headers = {"authorization": f"Bearer {house.token('narrow', 'trips')}"}
    told = httpx.get(f"{house.door}/openapi.json", headers=headers, timeout=20).text
    assert "trips" in told and "halves" not in told and "letters" not in told and "completions" not in told


def answers_to(operation: APIOperation[Any, Any, Any, Any], token: str, mode: GenerationMode) -> list[int]:
    """Statuses of the answers to requests made from the description, each of which has passed the checks."""
    headers, statuses = {"authorization": f"Bearer {token}"}, []

    @bounded
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call(headers=headers)
        case.validate_response(response, checks=CHECKS, headers=headers)
        statuses.append(response.status_code)

    ask()
    return statuses

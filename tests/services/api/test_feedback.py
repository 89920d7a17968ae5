"""Feedback: who may send it, which values are valid, and how it is joined with the answers of models."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from headrace.client import Forbidden, InvalidInput, NotFound
from headrace.services.feedback_store import Joined, find_recorded, joined
from tests.services.api.server import LocalService

ROWS = [{"distance": 1, "carrier": "AA"}, {"distance": 2, "carrier": "BB"}]
UPPER = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


def joined_rows(service: LocalService, model: str, request_id: str) -> list[Joined]:
    return [one for one in joined(service.project, model) if one.request_id == request_id]


def test_feedback_is_joined_with_the_answer_by_its_id(service: LocalService) -> None:
    with service.client("acme", "trips") as client:
        answer = client.predict("trips", ROWS)
        response = client.feedback(answer.id, [11.5, 25])
    assert (response["state"], response["rows"], response["new"]) == ("joined", [0, 1], 2)
    assert [(one.row, one.answer, one.truth) for one in joined_rows(service, "trips", answer.request_id)] == [
        (0, 12.0, 11.5),
        (1, 24.0, 25),
    ]


def test_the_bare_request_id_of_an_answer_is_enough(service: LocalService) -> None:
    with service.client("acme", "halves") as client:
        answer = client.predict("halves", UPPER)
        assert client.feedback(answer.request_id, "lower")["id"] == answer.id
    assert [(one.answer, one.truth) for one in joined_rows(service, "halves", answer.request_id)] == [("upper", "lower")]


def test_repeated_feedback_counts_once_and_the_latest_is_used(service: LocalService) -> None:
    with service.client("acme", "trips") as client:
        answer = client.predict("trips", ROWS)
        assert client.feedback(answer.id, 24, row=1)["new"] == 1
        assert client.feedback(answer.id, 24, row=1)["new"] == 0
        assert client.feedback(answer.id, 30, row=1)["new"] == 1
    assert [(one.row, one.truth) for one in joined_rows(service, "trips", answer.request_id)] == [(1, 30)]


def record(service: LocalService, replica: str, **fields: Any) -> None:
    """Writes the record of a request, as a replica does."""
    path = service.project.usage / replica / "answers-1.jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps({"at": 1.0, "tenant": "acme", "version": "0", **fields}) + "\n")


def test_a_truth_is_joined_when_its_answer_is_found_later(service: LocalService) -> None:
    with service.client("acme", "trips") as client:
        assert client.feedback("trips@0:early", 7)["state"] == "pending"
    assert joined_rows(service, "trips", "early") == []
    record(service, "trips-v0-gone", id="early", model="trips", answers=[12.0])
    assert [(one.row, one.answer, one.truth) for one in joined_rows(service, "trips", "early")] == [(0, 12.0, 7)]


def test_the_answer_of_a_shadow_is_not_joined_with_feedback(service: LocalService) -> None:
    with service.client("acme", "halves") as client:
        answer = client.predict("halves", UPPER)
        client.feedback(answer.id, "upper")
    record(service, "halves-v9-shade", id=answer.request_id, model="halves", version="9", answers=["lower"])
    assert find_recorded(service.project, "acme", answer.request_id, version="0").answers == ["upper"]  # type: ignore[union-attr]
    assert find_recorded(service.project, "acme", answer.request_id, others={"halves-v9-shade"}).version == "0"  # type: ignore[union-attr]


def test_feedback_for_an_answer_of_another_tenant_is_not_joined(service: LocalService) -> None:
    with service.client("acme", "trips") as acme, service.client("rival", "trips") as rival:
        answer = acme.predict("trips", ROWS)
        acme.feedback(answer.id, 12)
        with pytest.raises(NotFound):
            rival.feedback(answer.request_id, 99)
        assert rival.feedback(answer.id, 99)["state"] == "pending"  # the same as for an unknown id
    assert [one.truth for one in joined_rows(service, "trips", answer.request_id)] == [12]


def test_feedback_on_a_forbidden_model_is_refused_like_feedback_on_an_unknown_one(service: LocalService) -> None:
    with service.client("acme", "halves") as client:
        for model in ("trips", "nothing"):
            with pytest.raises(Forbidden, match="this token does not allow this"):
                client.feedback(f"{model}@1:deadbeef", 1)


@pytest.mark.parametrize(
    ("model", "truth", "expected"),
    [
        ("trips", "long", "a finite number"),
        ("trips", True, "a finite number"),
        ("halves", "middle", "upper, lower"),
        ("halves", 0, "upper"),
    ],
)
def test_feedback_that_the_model_could_not_answer_is_refused_with_the_valid_values(
    service: LocalService, model: str, truth: Any, expected: str
) -> None:
    with service.client("acme", "trips", "halves") as client, pytest.raises(InvalidInput) as caught:
        client.feedback(f"{model}@0:deadbeef", truth)
    assert caught.value.path == "truth"
    assert expected in str(caught.value.expected)


def test_feedback_on_a_row_that_the_request_did_not_have_is_refused(service: LocalService) -> None:
    with service.client("acme", "trips") as client:
        answer = client.predict("trips", ROWS)
        with pytest.raises(InvalidInput) as caught:
            client.feedback(answer.id, 1, row=2)
    assert caught.value.path == "row"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"{bad",
        b'{"id": "trips@1:x"}',
        b'{"id": "trips@1:x", "request_id": "x", "truth": 1}',
        b'{"id": "../../x", "truth": 1}',
        b'{"id": "trips@1:x", "truth": []}',
        b'{"id": "trips@1:x", "truth": 1e999}',
        b'{"id": "trips@1:x", "truth": 1, "row": -1}',
        b'{"id": "trips@1:x", "truth": 1, "more": 1}',
        b"[" * 100_000,
    ],
)
def test_invalid_feedback_is_refused_with_the_reason(service: LocalService, body: bytes) -> None:
    headers = {"authorization": f"Bearer {service.token('acme', 'trips')}", "content-type": "application/json"}
    response = httpx.post(f"{service.gateway}/v1/feedback", content=body, headers=headers)
    assert response.status_code in (400, 422), response.text
    assert response.json()["error"]["code"] in ("bad_json", "contract_violation")

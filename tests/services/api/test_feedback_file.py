"""`headrace feedback --file`: the true answers of a file are joined by request id or by an input, for the token's tenant."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.sample_file import SampleHead, file_name, hour_of
from headrace.services.feedback_store import joined
from tests.services.api.commands import run
from tests.services.api.server import LocalService


def truths_of(service: LocalService, requests: list[str]) -> dict[tuple[str, int], Any]:
    return {(one.request_id, one.row): one.truth for one in joined(service.project, "trips") if one.request_id in requests}


def test_each_row_is_joined_pending_unknown_or_contradictory(service: LocalService, tmp_path: Path) -> None:
    token = service.token("acme", "trips")
    with service.client("acme", "trips") as acme:
        one = acme.predict("trips", [{"distance": 1, "carrier": "AA"}])
        three = acme.predict("trips", [{"distance": place, "carrier": "AA"} for place in range(3)])
    path = tmp_path / "truths.csv"
    path.write_text(
        "id,row,minutes\n"
        f"{one.id},,11\n{one.id},0,11\n"
        f"{three.id},0,1\n{three.id},2,3\n{three.request_id},1,2\n"
        "trips@3:never-asked,0,5\nnever-asked,1,6\n"
        "twice,0,1\ntwice,0,2\n"
    )
    done = run(service, "feedback", "--file", str(path), token=token)
    found = json.loads(done.stdout)
    places = found.pop("places")
    assert done.returncode == 3
    assert found == {
        "rows": 9,
        "joined": 4,
        "pending": 1,
        "repeated": 1,
        "without_truth": 0,
        "contradictory": 2,
        "unknown": 1,
        "refused": 0,
    }
    assert places == {
        "contradictory": ["line 10: twice: 1 at line 9, 2 here"],
        "unknown": ["line 8: unknown request never-asked"],
    }
    rows = {(three.request_id, row): row + 1 for row in range(3)}
    assert truths_of(service, [one.request_id, three.request_id]) == {(one.request_id, 0): 11, **rows}

    path.write_text(f"id,row,minutes\n{one.id},,11\n")
    remote = run(service, "feedback", "--file", str(path), "--address", service.gateway, token=token, as_json=False)
    assert remote.returncode == 0 and "1 joined" in remote.stderr, "the same again changes nothing"


def test_a_key_is_searched_in_the_samples_of_the_tenant(service: LocalService, tmp_path: Path) -> None:
    now, ids = time.time(), {}
    for tenant in ("acme", "other"):
        with service.client(tenant, "trips") as client:
            ids[tenant] = client.predict("trips", [{"distance": 71.5, "carrier": "AA"}, {"distance": 72, "carrier": "BB"}])
    head = SampleHead("trips", ids["acme"].version, "sampled", hour_of(now), 4, 4, 0)
    lines = [
        {
            **{"at": now, "id": ids[tenant].request_id, "row": row, "tenant": tenant, "answer": 1.0, "confidence": None},
            "inputs": {"distance": distance, "carrier": "AA"},
        }
        for tenant in ids
        for row, distance in enumerate((71.5, 72.0))
    ]
    sample = service.project.usage / "sampled" / file_name(hour_of(now), "aa")
    sample.parent.mkdir(parents=True)
    sample.write_text("".join(json.dumps(line) + "\n" for line in [head.to_json(), *lines]))
    path = tmp_path / "truths.csv"
    path.write_text("distance,took\n71.5,9\n72,10\n99,1\n")
    arguments = ("feedback", "--file", str(path), "--model", "trips", "--truth", "took", "--key", "distance")
    done = run(service, *arguments, token=service.token("acme", "trips"))
    found = json.loads(done.stdout)
    assert (found["joined"], found["unknown"], found["other_tenants"]) == (2, 1, 2), done
    assert found["places"]["unknown"] == ["line 4: no sampled row has distance 99"]
    request = ids["acme"].request_id
    assert truths_of(service, [request, ids["other"].request_id]) == {(request, 0): 9, (request, 1): 10}

    missing = run(service, *arguments[:-1], "distanc", token=service.token("acme", "trips"))
    assert missing.returncode == 3 and "did you mean 'distance'" in json.loads(missing.stdout)["hint"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "missing.csv"), "no such file"),
        (("--file", "ids.csv"), "does not name its model"),
        (("--file", "ids.csv", "--key", "distance"), "needs the model whose samples are searched"),
        (("--key", "distance"), "--file was not given"),
        (("trips@3:a", "1", "--file", "ids.csv"), "either an id or a file is required"),
        (("trips@3:a",), "an id and its true answer, or a file, are required"),
    ],
)
def test_wrong_arguments_have_a_hint(service: LocalService, arguments: tuple[str, ...], message: str) -> None:
    (service.project.root / "ids.csv").write_text("id,minutes\na,1\n")
    done = run(service, "feedback", *arguments)
    error = json.loads(done.stdout)
    assert done.returncode == 2 and message in error["message"] and error["hint"]

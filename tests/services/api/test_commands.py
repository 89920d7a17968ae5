"""`headrace predict`, `batch` and `feedback` act for the tenant of the token that is set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.services.api.feedback_store import joined
from tests.services.api.server import LocalService

HEADRACE = str(Path(sys.executable).with_name("headrace"))


def run(service: LocalService, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in service.environment.items() if name != "HEADRACE_TOKEN"}
    if token is not None:
        environment["HEADRACE_TOKEN"] = token
    command = [HEADRACE, *arguments, "--json"]
    return subprocess.run(command, cwd=service.project.root, env=environment, capture_output=True, text=True, timeout=60)


def test_batches_and_feedback_belong_to_the_token_of_the_environment(service: LocalService, tmp_path: Path) -> None:
    token = service.token("acme", "trips")
    answer = json.loads(run(service, "predict", "trips", "distance=1", "carrier=AA", token=token).stdout)
    assert json.loads(run(service, "feedback", answer["id"], "11", token=token).stdout)["state"] == "joined"
    assert [one.truth for one in joined(service.project, "trips") if one.request_id == answer["request_id"]] == [11]

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"distance": 1, "carrier": "AA"}\n')
    batch = json.loads(run(service, "batch", "submit", "trips", str(rows), token=token).stdout)
    with service.client("acme", "trips") as acme:
        assert batch["id"] in [one.id for one in acme.batches("trips")]
    assert "no such batch" in run(service, "batch", "status", "trips", batch["id"]).stdout  # the operator has other batches


def test_without_a_token_in_the_environment_the_operator_s_token_is_used(service: LocalService) -> None:
    for token in (None, "", " "):
        assert run(service, "predict", "halves", "--sample", token=token).returncode == 0


@pytest.mark.parametrize(
    "command", [("predict", "halves", "--sample"), ("batch", "status", "halves"), ("feedback", "halves@1:x", "1")]
)
def test_the_error_names_the_environment_variable_of_a_refused_token(service: LocalService, command: tuple[str, ...]) -> None:
    done = run(service, *command, token=service.token("acme", "trips"))
    assert done.returncode == 5
    error = json.loads(done.stdout)
    assert "does not allow this" in error["message"]
    assert "HEADRACE_TOKEN" in error["hint"]

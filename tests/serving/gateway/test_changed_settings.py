"""Settings change while a model serves: clients with a token lose no request, others are accepted only with open access."""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import SettingsError
from headrace.project import Project
from headrace.serving.access import tokens
from headrace.serving.gateway import envoy_process, gateway
from headrace.serving.local_http import request
from headrace.serving.replicas.process_runner import Argv, ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.paths import ROOT
from tests.serving.load import Load
from tests.tiny_models import table_model

INSTANCE = {"distance": 1, "carrier": "AA"}
BODY = json.dumps({"instances": [INSTANCE]})


class AnonymousClient:
    """A client without a token, on one keep-alive connection; `statuses` are the answers in order."""

    def __init__(self, port: int) -> None:
        self.statuses: list[int] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(port,), daemon=True)

    def __enter__(self) -> AnonymousClient:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(10)

    def _ask(self, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while not self._stopped.is_set():
            connection.request("POST", "/v1/models/trips/predict", BODY, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            self.statuses.append(response.status)
            time.sleep(0.01)
        connection.close()

    def until(self, status: int, count: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.statuses[-count:] != [status] * count:
            assert time.monotonic() < deadline, self.statuses[-5:]
            time.sleep(0.01)


@pytest.fixture
def switch(project: Project, settings: Settings, tmp_path: Path) -> Callable[..., Settings]:
    """Does what `headrace up` does: the gateway first, then each model. Two real replicas, which check tokens themselves."""
    folder = table_model(tmp_path / "trips")

    def command(spec: ReplicaSpec, socket: Path) -> Argv:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        return [sys.executable, "-m", "tests.services.api.replica", str(folder), str(socket)], {"PYTHONPATH": path}

    def to(access: str, **changes: Any) -> Settings:
        wanted = settings.model_copy(update={"access": access, **changes})
        envoy_process.start(project.using(wanted))
        runner = ProcessRunner(project.using(wanted), command)
        rolling.roll_out(SPEC, 2, project.using(wanted), runner, lambda line: None)
        return wanted

    return to


SPEC = ReplicaSpec("trips", "0", "trips:0")


def asked_directly(project: Project) -> set[int]:
    """Statuses of replicas for a client without a token that bypasses the gateway."""
    found = set()
    for endpoint in gateway.endpoints_by_model(project)["trips"]:
        address = endpoint.address_in(project)
        found.add(request(address, "/v1/models/trips/predict", method="POST", body=json.loads(BODY), timeout_seconds=20).status)
    return found


def test_access_changes_both_ways_without_a_lost_request(project: Project, switch: Callable[..., Settings]) -> None:
    settings = switch("tokens")
    token = tokens.issue(project, "acme", ["trips"], 3600)[0]
    gateway.reload_tokens(project.using(settings))
    with (
        Load(settings.gateway_port, "trips", fast=2, slow=1, fresh=1, instance=INSTANCE, token=token) as load,
        AnonymousClient(settings.gateway_port) as anonymous,
    ):
        load.wait_for("0")
        anonymous.until(401)
        assert asked_directly(project) == {401}

        switch("open")
        anonymous.until(200, 10)
        assert asked_directly(project) == {200}
        assert set(anonymous.statuses) == {200, 401}

        closing = len(anonymous.statuses)
        switch("tokens")
        anonymous.until(401, 10)
        assert asked_directly(project) == {401}
        after = anonymous.statuses[closing:]
        assert set(after[after.index(401) :]) == {401}, "no old connection and no old replica accepts requests without a token"
        load.wait_for("0", 50)
    assert load.failures == []


def test_only_replicas_with_other_settings_are_replaced_and_no_request_is_lost(
    project: Project, switch: Callable[..., Settings]
) -> None:
    settings = switch("open")
    first = {endpoint.id for endpoint in gateway.endpoints_by_model(project)["trips"]}
    with Load(settings.gateway_port, "trips", fast=2, slow=1, fresh=1, instance=INSTANCE) as load:
        load.wait_for("0")
        switch("open", upload_idle_seconds=5.0)  # does not concern replicas
        assert {endpoint.id for endpoint in gateway.endpoints_by_model(project)["trips"]} == first
        switch("open", request_seconds=45.0)
        second = {endpoint.id for endpoint in gateway.endpoints_by_model(project)["trips"]}
        assert len(second) == 2 and not first & second
        load.wait_for("0", 50)
    assert load.failures == []


def test_a_release_does_not_change_access(project: Project, settings: Settings, switch: Callable[..., Settings]) -> None:
    closed = switch("tokens")
    before = gateway.endpoints_by_model(project)
    with pytest.raises(SettingsError, match="'open', but the gateway and all replicas run with 'tokens'") as caught:
        rolling.roll_out(
            ReplicaSpec("trips", "1", "trips:1"),
            2,
            project.using(settings),
            ProcessRunner(project.using(settings), None),
            print,
        )
    assert (caught.value.hint or "").startswith("headrace up")
    assert gateway.endpoints_by_model(project) == before
    assert gateway.runs_with_settings(project.using(closed))

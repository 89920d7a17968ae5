"""Bentos and registered versions of commit 4271f0e, before the packages were rearranged: they still serve the same answers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from headrace.project import Project
from headrace.runtime.usage import read_usage
from headrace.serving.access.tokens import issue, operator_token, prepare_tokens, revoke
from headrace.serving.local_http import Response, request, try_request
from headrace.serving.packaging import package
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from headrace.tracking import registry
from headrace.tracking.artifact import content_hash
from tests.exhaustive import exhaustive
from tests.legacy.unpack import unpack
from tests.paths import ROOT

LEGACY = ROOT / "tests" / "legacy"
FACTS: dict[str, dict[str, Any]] = json.loads((LEGACY / "facts.json").read_text())["versions"]
Serve = Callable[[str, str], Replica]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project(unpack(LEGACY / "legacy.tar.xz", tmp_path_factory.mktemp("legacy") / "project"))
    prepare_tokens(found)
    return found


@pytest.fixture
def serve(project: Project) -> Iterator[Serve]:
    """Starts a replica of a bento as a release does, with tokens, and waits until it is ready."""
    runner = ProcessRunner(project.using(Settings()))

    def start(version: str, bento_tag: str) -> Replica:
        model, _, number = version.partition("@")
        replica = runner.start(ReplicaSpec(model, number, bento_tag))
        deadline = time.monotonic() + 60
        while (answer := try_request(replica.address_in(project), "/readyz")) is None or answer.status != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return replica

    yield start
    supervisor.shutdown(project, stop_seconds=5.0)


def predict(project: Project, replica: Replica, instances: list[Any], token: str | None) -> Response:
    address, path = replica.address_in(project), f"/v1/models/{replica.model}/predict"
    return request(address, path, method="POST", body={"instances": instances}, token=token, timeout_seconds=30)


def rows_of(project: Project, model: str) -> int:
    """All rows that were predicted by `model`."""
    return sum(row.rows for row in read_usage(project.usage) if row.model == model)


def approximate(value: Any) -> Any:
    """The same tree with tolerant numbers: kernels of another CPU may differ in the last bits."""
    if isinstance(value, dict):
        return {name: approximate(one) for name, one in value.items()}
    if isinstance(value, list):
        return [approximate(one) for one in value]
    return pytest.approx(value, abs=2e-6) if isinstance(value, float) else value


@pytest.mark.parametrize("version", ["small@1", "clubs@1", "rhymes@1", "waves@1"])
def test_an_old_bento_serves_the_same_predictions_with_the_code_inside_it(project: Project, serve: Serve, version: str) -> None:
    facts = FACTS[version]
    replica = serve(version, facts["bento"])
    rows_before = rows_of(project, replica.model)
    assert predict(project, replica, facts["instances"], token=None).status == 401, "it finds the token keys"
    answer = predict(project, replica, facts["instances"], operator_token(project))
    assert answer.json()["predictions"] == approximate(facts["predictions"])
    assert rows_of(project, replica.model) == rows_before + len(facts["instances"]), "usage is written where it is read"


def test_an_old_bento_refuses_a_token_that_was_revoked_by_the_new_code(project: Project, serve: Serve) -> None:
    facts = FACTS["small@1"]
    replica = serve("small@1", facts["bento"])
    token, issued = issue(project, "acme", ["small"], 3600)
    assert predict(project, replica, facts["instances"], token).status == 200
    revoke(project, issued.jti)
    deadline = time.monotonic() + 20
    while (status := predict(project, replica, facts["instances"], token).status) != 401:
        assert status == 200 and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("version", ["clubs@1", exhaustive("waves@1")])
def test_an_old_registered_version_packaged_again_gives_the_same_predictions(
    project: Project, serve: Serve, version: str
) -> None:
    facts = FACTS[version]
    model, _, number = version.partition("@")
    if facts["served_by"].startswith("served_signals"):  # a custom class: its owner adapts its imports
        shutil.copy(ROOT / "docs" / "examples" / "served_signals.py", project.root)
    registered = registry.find_version(model, number, project)
    assert registered is not None and content_hash(registered.folder) == facts["content_sha256"]
    bento = package(registered.folder, model, number, registered.identity, project)
    assert bento.tag != facts["bento"], "it has the new serving code"
    answer = predict(project, serve(version, bento.tag), facts["instances"], operator_token(project))
    assert answer.json()["predictions"] == approximate(facts["predictions"])

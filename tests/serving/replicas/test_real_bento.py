"""Rollouts of built bentos with a real ONNX graph."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path

from headrace.project import Project
from headrace.serving.packaging import package
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings
from tests.tiny_models import image_model

IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


def test_a_new_version_of_a_bento_replaces_the_old_one_under_load(project: Project, settings: Settings, tmp_path: Path) -> None:
    """Keep-alive clients call throughout; no request fails and both versions answer."""
    slow_start = settings.model_copy(update={"ready_seconds": 90.0})
    runner = ProcessRunner(project.using(settings))
    specs = [
        ReplicaSpec(
            "halves",
            version,
            package(image_model(tmp_path / f"model-{version}"), "halves", version, {"data_md5": "d41d"}, project).tag,
        )
        for version in ("1", "2")
    ]
    rolling.roll_out(specs[0], 2, project.using(slow_start), runner, lambda line: None)
    assert rolling.is_serving(specs[0], 2, project.using(slow_start))
    versions: list[str] = []
    failures: list[str] = []
    stop = threading.Event()

    def call() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", slow_start.gateway_port, timeout=20)
        while not stop.wait(0.005):
            try:
                connection.request(
                    "POST",
                    "/v1/models/halves/predict",
                    json.dumps({"instances": [IMAGE]}),
                    {"content-type": "application/json"},
                )
                response = connection.getresponse()
                body = json.loads(response.read())
                assert body["predictions"][0]["label"] == "upper", body
                versions.append(body["version"])
            except (OSError, http.client.HTTPException, AssertionError, KeyError) as error:
                failures.append(repr(error))
                connection.close()

    clients = [threading.Thread(target=call) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        rolling.roll_out(specs[1], 2, project.using(slow_start), runner, lambda line: None)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert failures == []
    assert set(versions) == {"1", "2"}
    assert {replica.version for replica in runner.list()} == {"2"}

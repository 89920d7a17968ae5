"""Prometheus finds every replica behind the gateway, and no other."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.serving.gateway import gateway
from headrace.serving.gateway.model_route import ModelRoute, Traffic
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from tests.asgi import make_project


def labels(replica: Replica) -> dict[str, str]:
    """Its path below the port of metrics, and a name: all replicas have the same address."""
    return {"__metrics_path__": f"/replicas/{replica.id}/metrics", "instance": replica.id}


def test_every_replica_is_a_target_with_its_model_version_and_pool(tmp_path: Path) -> None:
    project, settings = make_project(tmp_path), Settings(access="open")
    main = Replica("digits-v1-aaaa", ReplicaSpec("digits", "1", "digits:1-0"), Path(".headrace/sockets/digits-v1-aaaa.sock"))
    spec = ReplicaSpec("digits", "2", "digits:2-0", pool="canary")
    canary = Replica("digits-v2-bbbb", spec, Path(".headrace/sockets/digits-v2-bbbb.sock"))
    gateway.write_configuration_files(project.using(settings), {"digits": ModelRoute([main, canary], Traffic(canary=5.0))})
    assert json.loads((project.gateway / "targets.json").read_text()) == [
        {"targets": ["127.0.0.1:9901"], "labels": {**labels(main), "model": "digits", "version": "1", "pool": "main"}},
        {"targets": ["127.0.0.1:9901"], "labels": {**labels(canary), "model": "digits", "version": "2", "pool": "canary"}},
    ]
    gateway.write_configuration_files(project.using(settings), {})
    assert json.loads((project.gateway / "targets.json").read_text()) == []

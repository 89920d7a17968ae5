"""Prometheus finds every replica behind the door, and no other."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.serving.gateway import gateway
from headrace.serving.gateway.clusters import Served, Traffic
from headrace.serving.replicas.replica import Replica, ReplicaSpec
from headrace.settings import Settings
from tests.asgi import make_project


def test_every_replica_is_a_target_with_its_model_version_and_pool(tmp_path: Path) -> None:
    project, settings = make_project(tmp_path), Settings(access="open")
    main = Replica("digits-v1-aaaa", ReplicaSpec("digits", "1", "digits:1-0"), "127.0.0.1", 21000)
    spec = ReplicaSpec("digits", "2", "digits:2-0", pool="canary")
    canary = Replica("digits-v2-bbbb", spec, "127.0.0.1", 21001)
    gateway.write_configuration_files(project, settings, {"digits": Served([main, canary], Traffic(canary=5.0))})
    assert json.loads((project.state / "door" / "targets.json").read_text()) == [
        {"targets": ["127.0.0.1:21000"], "labels": {"model": "digits", "version": "1", "pool": "main"}},
        {"targets": ["127.0.0.1:21001"], "labels": {"model": "digits", "version": "2", "pool": "canary"}},
    ]
    gateway.write_configuration_files(project, settings, {})
    assert json.loads((project.state / "door" / "targets.json").read_text()) == []

"""Records of replicas: what is stored, what is compared, and records that earlier versions wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from headrace.project import Project
from headrace.serving.replicas.replica import Replica, ReplicaSpec

SPEC = ReplicaSpec("digits", "3", "digits:3-5015fd75", threads=2, pool="canary")
REPLICA = Replica(
    "digits-v3-a1b2", SPEC, Path(".headrace/sockets/digits-v3-a1b2.sock"), "process", "0123456789ab", 1798477866.5
)


def test_a_record_comes_back_from_json_without_what_only_the_runner_knows() -> None:
    stored = json.loads(json.dumps(replace(REPLICA, state="starting", pid=7).to_dict()))
    assert not stored.keys() & {"state", "pid", "container"}
    back = Replica.from_dict({**stored, "a_later_field": 1})
    assert back.to_dict() == REPLICA.to_dict()
    assert (back.spec, back.address, back.state, back.pid) == (SPEC, REPLICA.address, "running", None)


def test_requests_reach_it_from_every_working_folder() -> None:
    assert REPLICA.address_in(Project(Path("/a/b"))) == Path("/a/b/.headrace/sockets/digits-v3-a1b2.sock")
    assert replace(REPLICA, address=("127.0.0.1", 21000)).address_in(Project(Path("/a/b"))) == ("127.0.0.1", 21000)


def test_records_are_equal_for_the_same_replica_in_the_same_pool() -> None:
    assert replace(REPLICA, state="failed", pid=7, started_at=0.0) == REPLICA
    assert len({REPLICA, replace(REPLICA, pid=7)}) == 1
    promoted = REPLICA.in_pool("main")
    assert promoted != REPLICA
    assert (promoted.id, promoted.pool, promoted.spec) == (REPLICA.id, "main", replace(SPEC, pool="main"))


def test_records_of_earlier_versions_are_read() -> None:
    common = {"host": "127.0.0.1", "port": 21000, "version": "3", "bento_tag": "digits:3-5015fd75", "runner": "processes"}
    served = {**common, "replica": "digits-v3-a1b2", "image": None, "threads": 2, "pool": "canary"}
    of_runner = {**common, "id": "digits-v3-a1b2", "model": "digits", "threads": 2, "pool": "canary", "state": "starting"}
    assert Replica.from_dict(served, "digits") == Replica.from_dict(of_runner) == replace(REPLICA, address=("127.0.0.1", 21000))
    assert Replica.from_dict(Replica.from_dict(of_runner).to_dict()).address == ("127.0.0.1", 21000)
    assert Replica.from_dict({**served, "image": "headrace/digits:1", "runner": "docker"}, "digits").runner == "docker"

"""What replicas are told, as processes and as containers."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.project import Project
from headrace.serving.replicas import environment
from headrace.serving.replicas.replica import Pool, ReplicaSpec
from headrace.settings import Settings


def spec(pool: Pool = "main") -> ReplicaSpec:
    return ReplicaSpec("digits", "3", "digits:abc", threads=2, pool=pool)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_process_is_told_whose_tokens_to_believe_and_where_to_count(project: Project) -> None:
    told = environment.of_replica(spec(), "digits-v3-0000", project, Settings())
    assert told == {
        "HEADRACE_GUARD": str(project.guard),
        "HEADRACE_LEDGER": str(project.usage / "digits-v3-0000"),
        "HEADRACE_QUOTAS": str(project.quotas / "store"),
        "HEADRACE_QUOTA_WHEN_DOWN": "closed",
        "HEADRACE_BODY_LIMIT_BYTES": "16777216",
        "HEADRACE_REQUEST_SECONDS": "30",
        "HEADRACE_REPLICA": "digits-v3-0000",
    }
    assert all(Path(told[name]).is_dir() for name in ("HEADRACE_LEDGER", "HEADRACE_QUOTAS"))


def test_a_shadow_and_an_open_house_are_told_so(project: Project) -> None:
    assert environment.of_replica(spec("shadow"), "a", project, Settings())["HEADRACE_SHADOW"] == "1"
    assert "HEADRACE_SHADOW" not in environment.of_replica(spec("canary"), "a", project, Settings())
    assert "HEADRACE_GUARD" not in environment.of_replica(spec(), "a", project, Settings(access="open"))
    redis = Settings(quota_store="redis://127.0.0.1:6379", quota_when_down="open")
    told = environment.of_replica(spec(), "a", project, redis)
    assert (told["HEADRACE_QUOTAS"], told["HEADRACE_QUOTA_WHEN_DOWN"]) == ("redis://127.0.0.1:6379", "open")


def test_settings_that_a_replica_reads_once_make_it_another_and_no_others_do() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"access": "open"},
        {"quota_store": "redis://:secret@10.0.0.4:6379"},
        {"quota_when_down": "open"},
        {"request_seconds": 45.0},
        {"max_request_bytes": 2048},
    ]
    found = [environment.settings_digest(Settings(**change)) for change in changes]
    assert len(set(found)) == len(changes)
    assert environment.settings_digest(Settings(drain_seconds=1.0, max_batch_bytes=2048, feedback_days=1.0)) == found[0]
    assert "secret" not in "".join(found)


def test_a_container_writes_to_its_own_folder_and_the_quotas_and_only_reads_the_guard(project: Project) -> None:
    arguments = environment.of_container(spec(), "digits-v3-0000", project, Settings())
    mounts = [arguments[i + 1] for i, name in enumerate(arguments) if name == "--mount"]
    assert mounts == [
        f"type=bind,source={project.usage / 'digits-v3-0000'},target=/run/headrace/ledger",
        f"type=bind,source={project.guard},target=/run/headrace/guard,readonly",
        f"type=bind,source={project.quotas / 'store'},target=/run/headrace/quotas",
    ]
    variables = {arguments[i + 1] for i, name in enumerate(arguments) if name == "--env"}
    assert {"HEADRACE_GUARD=/run/headrace/guard", "HEADRACE_THREADS=2", "OMP_NUM_THREADS=2"} <= variables
    assert not any(str(project.keys) in argument or "signing" in argument for argument in arguments)


def test_an_address_of_redis_which_may_hold_a_password_is_no_argument_of_docker(project: Project) -> None:
    settings = Settings(quota_store="redis://:secret@127.0.0.1:6379")
    arguments = environment.of_container(spec(), "a", project, settings)
    assert "HEADRACE_QUOTAS" in arguments and not any("secret" in argument for argument in arguments)
    assert environment.of_client(settings) == {"HEADRACE_QUOTAS": settings.quota_store}


def test_folders_of_replicas_that_are_gone_are_removed_once_nothing_needs_them(project: Project) -> None:
    old = time.time() - (environment.KEPT_DAYS + 1) * 86400
    for name, file in (
        ("gone", "answers-1.jsonl"),
        ("uncounted", "counters-1.bin"),
        ("empty", None),
        ("late", "answers-1.jsonl"),
    ):
        folder = Path(environment.of_replica(spec(), name, project, Settings())["HEADRACE_LEDGER"])
        if file:
            (folder / file).touch()
            os.utime(folder / file, (old, old) if name != "late" else None)
        os.utime(folder, (old, old))
    assert {folder.name for folder in environment.tidy(project)} == {"gone", "empty"}
    assert {folder.name for folder in project.usage.iterdir()} == {"uncounted", "late"}


def test_no_other_user_of_this_machine_gets_to_what_containers_may_write(project: Project) -> None:
    environment.of_container(spec(), "a", project, Settings())
    for parent, folder in ((project.usage, project.usage / "a"), (project.quotas, project.quotas / "store")):
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777

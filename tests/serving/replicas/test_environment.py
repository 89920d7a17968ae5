"""Environment variables of replicas, as processes and as containers."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.project import Project
from headrace.runtime.sample_file import file_name, hour_of
from headrace.serving.replicas import environment
from headrace.serving.replicas.replica import Pool, ReplicaSpec
from headrace.settings import Settings


def spec(pool: Pool = "main") -> ReplicaSpec:
    return ReplicaSpec("digits", "3", "digits:abc", threads=2, pool=pool)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_process_gets_token_keys_usage_and_quota_folders_and_limits(project: Project) -> None:
    variables = environment.process_variables(spec(), "digits-v3-0000", project.using(Settings()))
    assert variables == {
        "HEADRACE_TOKEN_KEYS": str(project.token_keys),
        "HEADRACE_USAGE": str(project.usage / "digits-v3-0000"),
        "HEADRACE_GUARD": str(project.token_keys),
        "HEADRACE_LEDGER": str(project.usage / "digits-v3-0000"),
        "HEADRACE_QUOTAS": str(project.quotas / "store"),
        "HEADRACE_QUOTA_WHEN_DOWN": "closed",
        "HEADRACE_BODY_LIMIT_BYTES": "16777216",
        "HEADRACE_REQUEST_SECONDS": "30",
        "HEADRACE_SAMPLE_ROWS_PER_HOUR": "300",
        "HEADRACE_SAMPLE_SHARE": "1",
        "HEADRACE_SAMPLE_DAYS": "30",
        "HEADRACE_REPLICA": "digits-v3-0000",
    }
    assert all(Path(variables[name]).is_dir() for name in ("HEADRACE_USAGE", "HEADRACE_QUOTAS"))


def test_a_shadow_replica_and_open_access_have_their_own_variables(project: Project) -> None:
    assert environment.process_variables(spec("shadow"), "a", project.using(Settings()))["HEADRACE_SHADOW"] == "1"
    assert "HEADRACE_SHADOW" not in environment.process_variables(spec("canary"), "a", project.using(Settings()))
    is_open = environment.process_variables(spec(), "a", project.using(Settings(access="open")))
    assert not {"HEADRACE_TOKEN_KEYS", "HEADRACE_GUARD"} & is_open.keys()
    redis = Settings(quota_store="redis://127.0.0.1:6379", quota_when_down="open")
    variables = environment.process_variables(spec(), "a", project.using(redis))
    address, _, name = variables["HEADRACE_QUOTAS"].partition("#")
    assert (address, variables["HEADRACE_QUOTA_WHEN_DOWN"]) == ("redis://127.0.0.1:6379", "open")
    other = environment.process_variables(spec(), "a", Project(project.root / "other").using(redis))
    assert name and other["HEADRACE_QUOTAS"] not in (address, f"{address}#{name}"), "projects that share a Redis count apart"
    named = Settings(quota_store="redis://127.0.0.1:6379#shared")
    assert environment.process_variables(spec(), "a", project.using(named))["HEADRACE_QUOTAS"] == named.quota_store


def test_the_digest_changes_with_the_settings_that_replicas_read_and_with_no_others() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"access": "open"},
        {"quota_store": "redis://:secret@10.0.0.4:6379"},
        {"quota_when_down": "open"},
        {"request_seconds": 45.0},
        {"max_request_bytes": 2048},
        {"sample_rows_per_hour": 0},
        {"sample_share": 0.1},
        {"sample_days": 7.0},
    ]
    found = [environment.settings_digest(Settings(**change)) for change in changes]
    assert len(set(found)) == len(changes)
    assert environment.settings_digest(Settings(drain_seconds=1.0, max_batch_bytes=2048, feedback_days=1.0)) == found[0]
    assert "secret" not in "".join(found)


def test_a_container_writes_to_its_own_folders_and_the_quotas_and_only_reads_the_token_keys(project: Project) -> None:
    arguments = environment.container_arguments(spec(), "digits-v3-0000", project.using(Settings()))
    mounts = [arguments[i + 1] for i, name in enumerate(arguments) if name == "--mount"]
    assert mounts == [
        f"type=bind,source={project.usage / 'digits-v3-0000'},target=/run/headrace/usage",
        f"type=bind,source={project.sockets / 'digits-v3-0000'},target=/run/headrace/sockets",
        f"type=bind,source={project.token_keys},target=/run/headrace/token-keys,readonly",
        f"type=bind,source={project.quotas / 'store'},target=/run/headrace/quotas",
    ]
    variables = {arguments[i + 1] for i, name in enumerate(arguments) if name == "--env"}
    assert {"HEADRACE_TOKEN_KEYS=/run/headrace/token-keys", "HEADRACE_THREADS=2", "OMP_NUM_THREADS=2"} <= variables
    assert not any(str(project.keys) in argument or "signing" in argument for argument in arguments)


def test_a_container_of_an_older_bento_finds_the_same_folders_by_the_earlier_names(project: Project) -> None:
    arguments = environment.container_arguments(spec(), "a", project.using(Settings()))
    variables = dict(arguments[i + 1].split("=", 1) for i, name in enumerate(arguments) if name == "--env")
    assert variables["HEADRACE_GUARD"] == variables["HEADRACE_TOKEN_KEYS"]
    assert variables["HEADRACE_USAGE"] == variables["HEADRACE_USAGE"]


def test_the_address_of_redis_with_its_password_is_not_an_argument_of_docker(project: Project) -> None:
    settings = Settings(quota_store="redis://:secret@127.0.0.1:6379")
    arguments = environment.container_arguments(spec(), "a", project.using(settings))
    assert "HEADRACE_QUOTAS" in arguments and not any("secret" in argument for argument in arguments)
    (address,) = environment.docker_client_variables(project.using(settings)).values()
    assert address.startswith(f"{settings.quota_store}#")


def test_headers_for_an_exporter_of_traces_are_not_arguments_of_docker(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret")
    arguments = environment.container_arguments(spec(), "a", project.using(Settings()))
    assert "OTEL_EXPORTER_OTLP_HEADERS" in arguments and not any("secret" in argument for argument in arguments)
    passed_on = environment.docker_client_variables(project.using(Settings()))
    assert passed_on["OTEL_EXPORTER_OTLP_HEADERS"] == "api-key=secret"


def test_folders_of_removed_replicas_are_deleted_once_nothing_needs_them(project: Project) -> None:
    old = time.time() - (environment.KEPT_DAYS + 1) * 86400
    for name, file in (
        ("gone", "answers-1.jsonl"),
        ("uncounted", "counters-1.bin"),
        ("empty", None),
        ("late", "answers-1.jsonl"),
    ):
        folder = Path(environment.process_variables(spec(), name, project.using(Settings()))["HEADRACE_USAGE"])
        if file:
            (folder / file).touch()
            os.utime(folder / file, (old, old) if name != "late" else None)
        os.utime(folder, (old, old))
    assert {folder.name for folder in environment.remove_old_folders(project)} == {"gone", "empty"}
    assert {folder.name for folder in project.usage.iterdir()} == {"uncounted", "late"}


def test_samples_are_removed_after_their_days_also_of_removed_replicas(project: Project) -> None:
    now = time.time()
    folder = Path(environment.process_variables(spec(), "gone", project.using(Settings()))["HEADRACE_USAGE"])
    kept, expired = (folder / file_name(hour_of(now - days * 86400), "aa") for days in (1, 3))
    for path in (kept, expired, folder / "samples-of-somebody.jsonl"):
        path.touch()
        os.utime(path, (now - 100 * 86400,) * 2)
    os.utime(folder, (now - 100 * 86400,) * 2)
    assert environment.remove_old_samples(project.using(Settings(sample_days=2))) == [expired]
    assert environment.remove_old_folders(project) == [], "the other sample has not expired"
    assert environment.remove_old_samples(project.using(Settings(sample_days=0.5))) == [kept]


def test_no_other_user_of_this_machine_can_reach_what_containers_write(project: Project) -> None:
    environment.container_arguments(spec(), "a", project.using(Settings()))
    for folder in (project.usage / "a", project.sockets / "a", project.quotas / "store"):
        parent = folder.parent
        assert stat.S_IMODE(parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777

"""Traffic splits and mirrored requests, with a real Envoy and one replica in each pool."""

from __future__ import annotations

import http.client
import json
import math
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from headrace.files import write_json
from headrace.project import Project
from headrace.serving.gateway import admin, envoy_process, gateway
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.gateway.model_route import Traffic
from headrace.serving.local_http import request
from headrace.serving.replicas import supervisor
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import Pool, Replica, ReplicaSpec
from headrace.settings import Settings
from tests.ports import lease
from tests.serving.replica_commands import echo_command

VERSIONS: dict[Pool, str] = {"main": "1", "canary": "2", "shadow": "3"}


@dataclass
class Pools:
    """A gateway with one model; each of its pools has one replica, of a different version."""

    project: Project
    settings: Settings
    replicas: dict[Pool, Replica]

    @property
    def endpoints(self) -> list[Replica]:
        return list(self.replicas.values())

    def send(self, traffic: Traffic) -> None:
        """Returns when Envoy has applied it."""
        if gateway.traffic(self.project, "digits") == traffic:
            return
        before = self.updates()
        gateway.update_model(self.project.using(self.settings), "digits", self.endpoints, traffic)
        deadline = time.monotonic() + 10
        while self.updates() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.05)  # its threads apply it a moment later

    def updates(self) -> int:
        answer = admin.ask(self.project, "/stats?format=json&filter=rds.models.update_success")
        assert answer is not None
        return int(answer.json()["stats"][0]["value"])

    def ask(self, path: str = "/v1/models/digits/echo", count: int = 1) -> list[dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.settings.gateway_port, timeout=20)
        answers = []
        for _ in range(count):
            connection.request("POST", path, b"{}", {"x-request-id": str(uuid.uuid4())})
            response = connection.getresponse()
            answers.append({"status": response.status, **json.loads(response.read())})
        connection.close()
        return answers


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pools]:
    root = tmp_path_factory.mktemp("pools")
    (root / "recipes").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    project = Project(root)
    with lease() as ports:
        settings = Settings(
            gateway_port=ports[0],
            gateway_admin_port=ports[1],
            access="open",
        )
        runner = ProcessRunner(project.using(settings), echo_command)
        try:
            envoy_process.start(project.using(settings))
            specs = [ReplicaSpec("digits", version, "good", pool=pool) for pool, version in VERSIONS.items()]
            started = {spec.pool: runner.start(spec) for spec in specs}
            found = Pools(project, settings, started)
            gateway.update_model(project.using(settings), "digits", found.endpoints)
            for endpoint in found.endpoints:
                admin.wait_until_healthy(project, "digits", {endpoint.address}, pool=endpoint.pool)
            yield found
            answer = admin.ask(project, "/stats?format=json&filter=update_rejected")
            assert answer is not None and not any(stat["value"] for stat in answer.json()["stats"])
        finally:
            supervisor.shutdown(project, stop_seconds=2.0)
            assert supervisor.supervised_processes(project) == []


@contextmanager
def load(pools: Pools, threads: int = 3) -> Iterator[Counter[Any]]:
    """Clients that send requests without pause; counts answers by status and version."""
    counted: Counter[Any] = Counter()
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                for answer in pools.ask(count=5):
                    counted[answer["status"], answer.get("version")] += 1
            except (OSError, http.client.HTTPException) as error:
                counted[type(error).__name__, None] += 1

    clients = [threading.Thread(target=ask) for _ in range(threads)]
    for client in clients:
        client.start()
    try:
        yield counted
    finally:
        stopped.set()
        for client in clients:
            client.join(30)


@pytest.mark.parametrize("share", [0.0, 5.0, 50.0, 100.0])
def test_a_canary_gets_its_share(pools: Pools, share: float) -> None:
    pools.send(Traffic(canary=share, shadow=share / 10))
    count = 600
    versions = Counter(answer["version"] for answer in pools.ask(count=count))
    # Five standard deviations of a binomial count: exceeded in one run of two million.
    spread = 5 * math.sqrt(count * share / 100 * (1 - share / 100))
    assert abs(versions["2"] - count * share / 100) <= spread
    assert versions.keys() <= {"1", "2"}
    assert gateway.traffic(pools.project, "digits") == Traffic(share, share / 10)


def test_a_shadow_gets_copies_and_its_answers_reach_no_client(pools: Pools) -> None:
    pools.send(Traffic(canary=50, shadow=100))
    answers = pools.ask(count=100)
    assert {answer["version"] for answer in answers} == {"1", "2"}
    asked = {dict(answer["headers"])["x-request-id"] for answer in answers}
    time.sleep(0.2)
    shadow = pools.replicas["shadow"]
    assert asked <= set(request(shadow.address_in(pools.project), "/seen").json()["seen"])


def test_changing_shares_under_load_loses_nothing_and_rewrites_only_the_routes(pools: Pools) -> None:
    clusters = (pools.project.gateway / "cds.json").stat().st_mtime_ns
    with load(pools) as counted:
        for step in range(20):
            pools.send(Traffic(canary=float(5 * step), shadow=float(step)))
    assert {status for status, _ in counted} == {200}
    assert {version for _, version in counted} == {"1", "2"}
    assert (pools.project.gateway / "cds.json").stat().st_mtime_ns == clusters


def test_envoys_counters_are_kept_for_each_pool(pools: Pools) -> None:
    pools.send(Traffic(canary=50))
    time.sleep(2.5)  # latencies of earlier tests arrive late
    before = admin.pool_stats(pools.project, "digits")
    answers = Counter(answer["version"] for answer in pools.ask(count=200))
    deadline = time.monotonic() + 10
    while True:
        since = {pool: stats.since(before[pool]) for pool, stats in admin.pool_stats(pools.project, "digits").items()}
        if since["main"].answers + since["canary"].answers == 200:
            break
        assert time.monotonic() < deadline, since
        time.sleep(0.1)
    requests = {pool: stats.requests for pool, stats in since.items()}
    assert requests == {"main": answers["1"], "canary": answers["2"], "shadow": 0}
    assert all(stats.error_rate == 0 for stats in since.values())
    for pool in ("main", "canary"):
        median = since[pool].quantile(0.5)
        assert median is not None and 0 < median < 1


def test_a_killed_canary_fails_no_request(pools: Pools) -> None:
    """The main pool answers in its place, before and after Envoy notices."""
    pools.send(Traffic(canary=50))
    pid = supervisor.states(pools.project)[pools.replicas["canary"].id].pid
    assert pid is not None
    with load(pools) as counted:
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        seen = counted[200, "2"]
        deadline = time.monotonic() + 30
        while counted[200, "2"] <= seen + 20:  # it restarts and gets its share again
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert {status for status, _ in counted} == {200}


def test_a_promoted_canary_changes_pools_without_a_lost_request(pools: Pools) -> None:
    pools.send(Traffic(canary=100))
    promoted = [e.in_pool("main") if e.pool == "canary" else e for e in pools.endpoints if e.pool != "shadow"]
    with load(pools) as counted:
        gateway.update_model(pools.project.using(pools.settings), "digits", [*pools.endpoints, promoted[1]])
        admin.wait_until_healthy(pools.project, "digits", {promoted[1].address}, pool="main")
        gateway.update_model(pools.project.using(pools.settings), "digits", [*pools.endpoints, promoted[1]], Traffic())
        gateway.update_model(pools.project.using(pools.settings), "digits", promoted)
        admin.wait_until_removed(pools.project, "digits", {promoted[1].address}, pool="canary")
        time.sleep(0.2)
    assert {status for status, _ in counted} == {200}
    assert {e.pool for e in gateway.endpoints_by_model(pools.project)["digits"]} == {"main"}
    gateway.update_model(pools.project.using(pools.settings), "digits", pools.endpoints)
    for endpoint in pools.endpoints:
        admin.wait_until_healthy(pools.project, "digits", {endpoint.address}, pool=endpoint.pool)


def test_files_of_an_earlier_headrace_are_read(pools: Pools, tmp_path: Any) -> None:
    main = replace(pools.endpoints[0], address=("127.0.0.1", 21000))
    old = {
        **{"host": "127.0.0.1", "port": 21000, "replica": main.id, "version": main.version},
        **{"bento_tag": main.spec.bento_tag, "runner": "processes", "image": None, "threads": 1},
    }
    other = Project(tmp_path)
    write_json(other.gateway / "models.json", {"digits": [old]})
    assert gateway.endpoints_by_model(other) == {"digits": [main]}
    assert gateway.traffic(other, "digits") == gateway.traffic(other, "zebra") == Traffic()


def test_quantiles_are_interpolated_and_counters_restart_with_envoy() -> None:
    stats = PoolStats(4, 0, 0, ((0.001, 0), (0.002, 2), (0.004, 4)))
    assert stats.quantile(0.5) == pytest.approx(0.002)
    assert stats.quantile(0.75) == pytest.approx(0.003)
    assert PoolStats().quantile(0.5) is None and PoolStats().error_rate == 0
    assert stats.since(PoolStats(9, 1)) == stats
    assert stats.since(PoolStats(1, 0, 0, ((0.001, 0), (0.002, 1), (0.004, 1)))).quantile(1.0) == pytest.approx(0.004)

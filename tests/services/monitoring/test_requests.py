"""What replicas have counted since the last look, whatever becomes of the replicas."""

from __future__ import annotations

from pathlib import Path

import pytest

from bentos.telemetry.metrics import Metrics
from headrace.project import Project
from headrace.services.monitoring import requests
from headrace.services.monitoring.requests import RequestCounts, count_requests

DAY = 24 * 3600.0


class Replicas:
    """The metrics of replicas, as they would answer; None for one that does not."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metrics | None] = {}

    def totals(self, project: Project, model: str, version: str) -> list[tuple[str, dict[str, int]]]:
        return [
            (name, requests.counts_in(bytes(found.render().body).decode()))
            for name, found in self.metrics.items()
            if found is not None
        ]

    def restart(self, name: str) -> Metrics:
        found = self.metrics[name] = Metrics()
        return found


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    found = Replicas()
    monkeypatch.setattr(requests, "_totals", found.totals)
    return found


def answer(metrics: Metrics, status: int, times: int) -> None:
    for _ in range(times):
        metrics.count("acme", "predict", status, 0.01)


def looks(project: Project, path: Path, now: float = 0.0) -> list[RequestCounts]:
    return count_requests(project, "m", "1", path, now)


def test_each_request_counts_once_by_its_reason(project: Project, tmp_path: Path, replicas: Replicas) -> None:
    path, one, other = tmp_path / "requests.json", replicas.restart("a"), replicas.restart("b")
    answer(one, 200, 8)
    answer(one, 422, 2)
    answer(other, 503, 1)
    one.count_unseen({("carrier", "unknown_level"): 3})
    (first,) = looks(project, path)
    assert (first.requests, first.refused, first.unseen) == (11, {"against the contract": 2, "overloaded": 1}, 3)
    assert looks(project, path, 1.0) == [first], "nothing new"
    answer(one, 418, 1)
    assert looks(project, path, 2.0)[1:] == [RequestCounts(at=2.0, requests=1, refused={"status 418": 1})]


def test_a_replica_that_restarted_or_does_not_answer_loses_and_repeats_nothing(
    project: Project, tmp_path: Path, replicas: Replicas
) -> None:
    path = tmp_path / "requests.json"
    answer(replicas.restart("a"), 200, 5)
    assert [one.requests for one in looks(project, path)] == [5]
    answer(replicas.restart("a"), 200, 2)
    kept = replicas.metrics["a"]
    assert [one.requests for one in looks(project, path, 1.0)] == [5, 2]
    replicas.metrics["a"] = None
    assert [one.requests for one in looks(project, path, 2.0)] == [5, 2]
    replicas.metrics["a"] = kept
    assert [one.requests for one in looks(project, path, 3.0)] == [5, 2]
    assert [one.requests for one in looks(project, path, 15 * DAY)] == [], "older than two weeks"


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 1, "replicas": 3}', '{"schema_version": 99}'])
def test_a_damaged_file_begins_again(project: Project, tmp_path: Path, replicas: Replicas, content: str) -> None:
    path = tmp_path / "requests.json"
    path.write_text(content)
    answer(replicas.restart("a"), 200, 1)
    assert [one.requests for one in looks(project, path)] == [1]


def test_without_replicas_nothing_is_counted(project: Project, tmp_path: Path) -> None:
    assert count_requests(project, "m", "1", tmp_path / "requests.json") == []

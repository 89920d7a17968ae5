"""Models in production are served again, each on its own, and `status` lists the others. Small replicas stand in for bentos."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from headrace.errors import HeadraceError, ServiceError
from headrace.release import deploy, history, journal
from headrace.release.journal import Entry
from headrace.services.status import status
from headrace.serving.gateway import gateway
from headrace.serving.replicas import runners
from tests.serving.served_project import ServedProject, open_served_project


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProject]:
    with open_served_project(tmp_path_factory.mktemp("production") / "clone") as found:
        yield found


@pytest.fixture(autouse=True)
def stand_ins(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bento named `good` exists and is served; any other is gone, and so are its files in the registry."""
    monkeypatch.setattr(runners, "runner_for", lambda *_: served.runner)
    monkeypatch.setattr(deploy, "is_packaged", lambda entry, project: entry.facts["bento"] == "good")


def release(served: ServedProject, model: str, bento: str) -> Entry:
    facts = {"bento": bento, "image": None, "threads": 1, "replicas": 1, "runner": "process"}
    return journal.record(served.project, "released", model, "1", facts)


def models(served: ServedProject) -> dict[str, Any]:
    return {model["name"]: model for model in status(served.project.using(served.settings))["models"]}


def test_a_model_that_cannot_be_served_keeps_no_other_one_off(served: ServedProject) -> None:
    for model, bento in (("a", "good"), ("lost", "lost:1-x"), ("z", "good")):
        release(served, model, bento)
    project, printed = served.project.using(served.settings), list[str]()
    assert {name: found["problem"] for name, found in models(served).items()} == {
        "a": "it does not serve: it was not started since the services were stopped",
        "lost": "it does not serve: its bento lost:1-x is gone from this machine, and headrace up packages it again",
        "z": "it does not serve: it was not started since the services were stopped",
    }
    with pytest.raises(HeadraceError, match="lost"):
        deploy.serve_production(project, printed.append)
    assert sorted(gateway.endpoints_by_model(project)) == ["a", "z"]
    assert any(line.startswith("lost@1 is not served: ") for line in printed)
    found = models(served)
    assert {name: (model["ready"], model["alias"]) for name, model in found.items()} == {
        "a": (1, "champion"),
        "lost": (0, "champion"),
        "z": (1, "champion"),
    }
    assert [name for name, model in found.items() if model["problem"]] == ["lost"]

    release(served, "lost-too", "lost-too:1-x")
    with pytest.raises(ServiceError, match=r"2 of 4 models are not served: lost: .*; lost-too: "):
        deploy.serve_production(project, printed.append)


def test_two_starts_at_once_take_turns_and_both_succeed(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when somebody runs `headrace up` while the systemd unit does."""
    production = {"twice": release(served, "twice", "good")}
    monkeypatch.setattr(history, "production", lambda entries: production)
    project, printed = served.project.using(served.settings), list[str]()
    with ThreadPoolExecutor(2) as pool:
        started = [pool.submit(deploy.serve_production, project, printed.append) for _ in range(2)]
        assert [one.result() for one in started] == [["twice"], ["twice"]]
    assert len(gateway.endpoints_by_model(project)["twice"]) == 1
    assert sum("new replica" in line for line in printed) == 1, printed
    assert "another process starts what is in production; waiting for it" in printed

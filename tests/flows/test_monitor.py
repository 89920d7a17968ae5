"""The flow `monitor` on a real Prefect server: an alarm becomes an event and a notification, once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.context import refresh_global_settings_context

from flows.monitor import monitor
from headrace.project import Project, find_project
from headrace.services import prefect
from headrace.services.events.deliver import Deliveries
from headrace.services.prefect import prefect_environment
from tests.http_receiver import Receiver, running
from tests.release.candidates import new_recipe, released
from tests.services.monitoring.sampled_rows import rows_like_training, sampled
from tests.services.prefect_server import prefect_server


@pytest.fixture
def served(built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Project, Receiver]]:
    """The built project with a Prefect server and a receiver of notifications."""
    with prefect_server(built.root) as project, running(Receiver(200)) as hook:
        for name, value in prefect_environment(project).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HEADRACE_ROOT", str(built.root))
        monkeypatch.setenv("HEADRACE_PREFECT_PORT", str(project.settings.prefect_port))
        monkeypatch.setenv("HEADRACE_NOTIFY", f"json://127.0.0.1:{hook.server_address[1]}/")
        refresh_global_settings_context()
        yield project, hook
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    refresh_global_settings_context()


def events(project: Project, model: str) -> list[dict[str, Any]]:
    wanted = {"filter": {"event": {"name": ["headrace.alarm"]}, "resource": {"id": [f"headrace.model.{model}"]}}}
    found: list[dict[str, Any]] = prefect.call(project, "POST", "events/filter", wanted)["events"]
    return found


def about(model: str, hook: Receiver) -> list[dict[str, Any]]:
    """The notifications of one model; the project has those of other tests too."""
    return [body for body in hook.bodies if body["title"].startswith(f"{model}@")]


def test_an_alarm_is_an_event_and_a_notification_once(served: tuple[Project, Receiver]) -> None:
    project, hook = served
    recipe = new_recipe(project)
    released(recipe, project)
    Deliveries(find_project()).run()
    for hour in range(2, 10):
        sampled(project, recipe.name, hour, rows_like_training(project, recipe, 100, hour, length=1000.0))
    facts = monitor(recipe.name)
    Deliveries(find_project()).run()
    assert facts["alarm"]["raised"] and facts["new_hours"] == 8
    assert [body["title"] for body in about(recipe.name, hook)] == [f"{recipe.name}@1: released", f"{recipe.name}@1: alarm"]
    assert "length" in about(recipe.name, hook)[1]["message"]
    again = monitor(recipe.name)
    Deliveries(find_project()).run()
    assert again["alarm"]["raised"] and again["new_hours"] == 0 and len(about(recipe.name, hook)) == 2
    (event,) = events(project, recipe.name)
    assert event["payload"]["version"] == "1" and "length" in event["payload"]["reasons"][0]

"""The order of the steps in the flow `release`. The steps themselves are replaced here; test_release.py runs them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import flows.release
from headrace.errors import ModelRefused
from headrace.project import Project

UNTIL_DECISION = ["recover", "ingest", "validate", "prepare", "train", "export", "evaluate", "register", "judge"]


def run(monkeypatch: pytest.MonkeyPatch, stops: bool) -> list[str]:
    """The steps of one release of `tiny`, in order."""
    steps: list[str] = []

    def step(name: str) -> Any:
        def note(*_: Any) -> Any:
            steps.append(name)
            if name == "stop":
                raise ModelRefused("refused")
            return SimpleNamespace(stops=stops) if name == "judge" else {}

        return note

    for name in (*UNTIL_DECISION, "keep_production_serving", "stop", "package", "roll_out", "promote", "record"):
        monkeypatch.setattr(flows.release, name, step(name))
    try:
        flows.release.release.fn("tiny")
    except ModelRefused:
        steps.append("error")
    return steps


def test_a_candidate_that_passes_is_packaged_rolled_out_promoted_and_recorded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, stops=False) == [*UNTIL_DECISION, "package", "roll_out", "promote", "record"]


def test_a_refused_candidate_ends_the_release_after_the_decision(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, stops=True) == [*UNTIL_DECISION, "keep_production_serving", "stop", "error"]

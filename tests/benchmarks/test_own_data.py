"""The benchmark of own data: its sources are what they should be, a recipe can be written for each, and the page adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import own_data
from benchmarks.own_data_sources import EXAM, KINDS, Source, is_right
from headrace.errors import HeadraceError
from headrace.project import Project
from headrace.recipe.recipe import load_recipe
from headrace.scaffold.folders import write_folder_recipe
from headrace.scaffold.write import Choices, write_recipe

TASKS = {
    "churn": "classification",
    "orders": "classification",
    "flats": "regression",
    "delays": "classification",
    "traffic": "classification",
    "loans": "classification",
    "fruits": "image-classification",
    "shapes": "image-classification",
    "letters": "text-classification",
    "tickets": "text-classification",
}
"""The task that `headrace new` should choose for each."""


def test_a_recipe_is_written_for_every_source(project: Project) -> None:
    (folder := Path(own_data.FOLDER)).mkdir()
    sources = list(own_data.write_sources(folder, True, None))
    assert len(sources) == len(KINDS) == len(TASKS)
    for source in sources:
        read = {"query": source.options[1]} if source.options else {}
        found = write_folder_recipe(source.name, Path(source.data), [source.target] if source.target else [], project)
        if found is None:
            assert source.target is not None
            write_recipe(source.name, source.data, source.target, project, Choices(read=read))
        assert load_recipe(source.name, project).task == TASKS[source.name], source.name
        assert len(source.truth) == EXAM and len(set(source.truth)) > 1
        assert Path(source.exam).exists()


def test_answers_are_read_and_compared() -> None:
    said = {"predictions": [{"label": "yes", "probability": 0.9}, {"price": 110.0}, None]}
    assert own_data.answers(json.dumps(said), "price") == ["yes", 110.0, None]
    assert is_right("yes", "yes") and is_right("true", True) and is_right(110.0, 100.0) and is_right("1", 1)
    assert not is_right("no", "yes") and not is_right(150.0, 100.0) and not is_right(None, "yes")


def test_the_page_counts_what_reached_the_aim() -> None:
    source = Source("churn", "comma CSV", "a.csv", "churned", "b.csv", ["yes"], ["months=3"])
    fast = own_data.Measured(source, {"new": 2.0, "run": 30.0, "first answer": 1.0}, True, 18)
    slow = own_data.Measured(source, {"new": 2.0, "run": 300.0, "first answer": 1.0}, False, 9)
    failed = own_data.Measured(source, {"new": 2.0}, error="it broke\nin many lines")
    text = own_data.page([fast, slow, failed], 20.0, (0.1, 2.0), "0123456789")
    assert "reached by 1 of 3" in text
    assert "| comma CSV | 2.0 | 30.0 | 1.0 | 33.0 | yes | 18 of 20 |" in text
    assert "| comma CSV | 2.0 | – | – | – | failed | – |" in text and "`churn` failed: it broke" in text


def test_a_failed_command_is_a_result_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def headrace(self, *arguments: str) -> None:
            raise HeadraceError("`headrace new` ended with exit code 3", where="here", hint="look")

    source = Source("churn", "comma CSV", "a.csv", "churned", "b.csv", ["yes"], ["months=3"])
    measured = own_data.measure_one(source, Broken())  # type: ignore[arg-type]
    assert measured.error == "`headrace new` ended with exit code 3" and measured.seconds == {}
    assert measured.transcript[0] == "$ headrace new churn --data a.csv --target churned"

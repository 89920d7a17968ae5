"""A first batch is validated once: the stage uses the report of ingest, if nothing has changed in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.data.batches import add_batch
from headrace.data.ingest import ingest
from headrace.data.validation import stored
from headrace.data.validation.context import ValidationContext
from headrace.errors import DataRejected
from headrace.pipeline.validate import validate_batches
from headrace.project import Project

BETWEEN = {"type": "expect_column_values_to_be_between", "column": "y", "min_value": 0, "max_value": 100}


def quiet(line: str) -> None:
    pass


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each run of Great Expectations over a suite."""
    rows: list[int] = []
    run = ValidationContext.run

    def counted(self: ValidationContext, frame: Any) -> Any:
        rows.append(len(frame))
        return run(self, frame)

    monkeypatch.setattr(ValidationContext, "run", counted)
    return rows


def pages(project: Project) -> list[Path]:
    return list((project.data_docs / "validations").rglob("*.html"))


def verdict(project: Project) -> Any:
    return json.loads((project.artifacts("toy") / "validation.json").read_text())


def test_ingest_and_the_stage_of_a_first_release_run_great_expectations_once(
    project: Project, make_recipe: Any, toy_csv: Path, runs: list[int]
) -> None:
    recipe = make_recipe(expect=[BETWEEN])
    ingest(recipe, project, quiet)
    validate_batches(recipe, project)
    assert runs == [40] and len(pages(project)) == 1
    report = json.loads(project.validation_report("toy").read_text())
    assert report["success"] and Path(report["docs"]) == pages(project)[0]
    once = verdict(project)
    validate_batches(recipe, project)  # a forced stage validates again, with the same result
    assert runs == [40, 40] and verdict(project) == once


@pytest.mark.parametrize("change", ["expectations", "data", "code", "libraries"])
def test_the_stage_validates_when_anything_has_changed_since_ingest(
    change: str, project: Project, make_recipe: Any, toy_csv: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(expect=[BETWEEN])
    ingest(recipe, project, quiet)
    if change == "expectations":
        with pytest.raises(DataRejected):
            validate_batches(make_recipe(expect=[{**BETWEEN, "max_value": 30}]), project)
    elif change == "data":
        (project.root / "new.csv").write_text("month,day,kind,y\n5,1,a,50\n")
        add_batch(recipe, project.root / "new.csv", project, quiet)
        validate_batches(recipe, project)
        assert runs == [40, 1, 41]
        return
    else:
        if change == "code":
            monkeypatch.setattr(stored, "_code_digest", lambda: "another")
        else:
            monkeypatch.setattr(stored, "installed_version", lambda name: "99")
        validate_batches(recipe, project)
    assert runs == [40, 40]


def test_a_bad_first_batch_is_refused_before_it_is_stored(project: Project, make_recipe: Any, toy_csv: Path) -> None:
    with pytest.raises(DataRejected):
        ingest(make_recipe(expect=[{**BETWEEN, "max_value": 30}]), project, quiet)
    assert not project.raw_data("toy").exists()


@pytest.mark.parametrize("content", ["", "{}", '{"key": 1, "report": {}}', "[]"])
def test_a_damaged_kept_report_is_ignored(
    content: str, project: Project, make_recipe: Any, toy_csv: Path, runs: list[int]
) -> None:
    recipe = make_recipe(expect=[BETWEEN])
    ingest(recipe, project, quiet)
    (kept,) = project.validation_report("toy").parent.glob("toy.first-batch.json")
    kept.write_text(content)
    validate_batches(recipe, project)
    assert runs == [40, 40]


def test_several_batches_are_validated_together(project: Project, make_recipe: Any, toy_csv: Path, runs: list[int]) -> None:
    recipe = make_recipe(incremental={"column": "month", "first": 2})
    ingest(recipe, project, quiet)
    from headrace.data.batches import next_batch

    next_batch(recipe, project, quiet)
    toy_csv.write_text(toy_csv.read_text().replace("1,0,a,10", "1,0,a,99"))
    ingest(recipe, project, quiet)  # writes both batches again
    runs.clear()
    validate_batches(recipe, project)
    assert runs == [30]

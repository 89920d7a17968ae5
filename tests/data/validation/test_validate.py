"""Data validation with Great Expectations, not replaced by a mock."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from headrace.data.validation.pixels import rows_outside
from headrace.data.validation.suite import propose_suite
from headrace.data.validation.validate import PIXELS, render, validate
from headrace.errors import DataRejected, RecipeError
from headrace.project import Project
from headrace.recipe.recipe import Recipe, parse_recipe

FRAME = pd.DataFrame({"age": [20, 30, 40, 50], "city": ["Oslo", "Rome", "Rome", "Oslo"], "y": [1.0, 2.0, 3.0, 4.0]})


def recipe(expect: list[dict[str, Any]] | None = None, task: str = "regression", **data: Any) -> Recipe:
    model = "cnn" if task.startswith("image") else "mlp"
    fields = {
        "name": "toy",
        "task": task,
        "data": {"source": "t.csv", "target": "y", **data},
        "expect": expect or [],
        "model": {"name": model},
        "train": {},
        "serve": {},
    }
    return parse_recipe(json.dumps(fields), "recipes/toy.yaml")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


BETWEEN = {"type": "expect_column_values_to_be_between", "column": "age", "min_value": 18, "max_value": 45}


def test_a_good_batch_passes_and_lists_implicit_expectations(project: Project) -> None:
    report = validate(FRAME.head(3), recipe([BETWEEN]), project, "one")
    assert report.success and report.passed == report.total == 4
    assert "expect_column_values_to_not_be_null (y)" in report.implicit
    report.raise_if_failed()


def test_a_failure_counts_its_rows_and_shows_them(project: Project) -> None:
    report = validate(FRAME, recipe([BETWEEN]), project, "one")
    (failure,) = report.failures
    assert (failure.column, failure.unexpected, failure.percent, failure.implicit) == ("age", 1, 25.0, False)
    assert [(sample.row, sample.value) for sample in failure.samples] == [(4, 50)] and report.failing_rows == [3]
    with pytest.raises(DataRejected, match=r"age: 1 rows \(25 %\); row 4: 50"):
        report.raise_if_failed()


def test_row_numbers_ignore_the_index_of_the_frame(project: Project) -> None:
    report = validate(FRAME.set_index(pd.Index([7, 7, 9, 100])), recipe([BETWEEN]), project, "one")
    assert report.failing_rows == [3]


def test_data_docs_hold_a_page_for_each_validation(project: Project) -> None:
    first = validate(FRAME, recipe([BETWEEN]), project, "march / 1.csv")
    second = validate(FRAME.head(2), recipe([BETWEEN]), project, "april")
    assert first.docs != second.docs and Path(first.docs).is_file() and Path(second.docs).is_file()
    index = (project.data_docs / "index.html").read_text()
    assert "april" in index and "march" in index
    assert "Failed" in Path(first.docs).read_text() and "Succeeded" in Path(second.docs).read_text()


def test_a_missing_target_value_fails_without_an_expectation_in_the_recipe(project: Project) -> None:
    report = validate(FRAME.assign(y=[1.0, None, 3.0, 4.0]), recipe(), project, "one")
    (failure,) = report.failures
    assert failure.implicit and failure.type == "expect_column_values_to_not_be_null" and report.failing_rows == [1]


def test_an_empty_batch_fails(project: Project) -> None:
    (failure,) = validate(FRAME.head(0), recipe(), project, "one").failures
    assert failure.type == "expect_table_row_count_to_be_between" and failure.observed == 0


def test_a_wrong_type_is_reported_with_the_one_that_was_expected(project: Project) -> None:
    of_type = {"type": "expect_column_values_to_be_of_type", "column": "age", "type_": "str"}
    with pytest.raises(DataRejected, match=r"of_type age; observed 'int64', expected type_ 'str'"):
        validate(FRAME, recipe([of_type]), project, "one").raise_if_failed()


def test_a_missing_column_fails(project: Project) -> None:
    report = validate(FRAME.drop(columns="city"), recipe(columns=["age", "city", "y"]), project, "one")
    assert [failure.type for failure in report.failures] == ["expect_table_columns_to_match_set"]


def test_new_labels_fail_unless_the_recipe_has_its_own_set(project: Project) -> None:
    frame = FRAME.assign(y=["a", "b", "z", "a"])
    report = validate(frame, recipe(task="classification"), project, "one", known_labels=["a", "b"])
    assert [(f.type, f.implicit) for f in report.failures] == [("expect_column_values_to_be_in_set", True)]
    own = {"type": "expect_column_values_to_be_in_set", "column": "y", "value_set": ["a", "b", "z"]}
    assert validate(frame, recipe([own], task="classification"), project, "one", known_labels=["a", "b"]).success


def test_an_expectation_that_is_also_implicit_counts_once(project: Project) -> None:
    own = {"type": "expect_column_values_to_not_be_null", "column": "y"}
    assert validate(FRAME, recipe([own]), project, "one").total == 3


@pytest.mark.parametrize("bad", [-1, 256, None, "x"])
def test_an_invalid_pixel_fails_with_its_column(project: Project, bad: Any) -> None:
    frame = pd.DataFrame({"p_0": [0, 255], "p_1": [7, bad], "y": [0, 1]}).astype({"p_1": object})
    report = validate(frame, recipe(task="image-classification", columns=["p[2]", "y"], image=[1, 2]), project, "one")
    (failure,) = report.failures
    assert (failure.type, report.failing_rows, failure.samples[0].row) == (PIXELS, [1], 2) and "p_1" in failure.samples[0].value


@pytest.mark.parametrize(
    ("expectation", "message"),
    [
        ({**BETWEEN, "min_valu": 1}, r"expect\.0\.min_valu: .* no such argument; did you mean 'min_value'"),
        ({**BETWEEN, "column": "aeg"}, r"expect\.0\.column: no column 'aeg'; did you mean 'age'"),
        ({"type": "expect_column_values_to_be_between", "min_value": 1}, r"expect\.0: .*column: field required"),
        ({**BETWEEN, "mostly": "often"}, r"expect\.0: .*mostly"),
    ],
)
def test_a_wrong_argument_is_a_recipe_error_with_its_field(project: Project, expectation: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        validate(FRAME, recipe([expectation]), project, "one")
    assert caught.value.where == "recipes/toy.yaml"


def test_an_expectation_that_cannot_be_computed_gives_the_reason(project: Project) -> None:
    numeric = {"type": "expect_column_mean_to_be_between", "column": "city", "min_value": 0, "max_value": 1}
    (failure,) = validate(FRAME, recipe([numeric]), project, "one").failures
    assert failure.problem


def test_the_report_goes_to_json_and_to_the_terminal(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = validate(
        FRAME.assign(city="[bold]x"),
        recipe([BETWEEN, {"type": "expect_column_values_to_be_in_set", "column": "city", "value_set": ["Rome"]}]),
        project,
        "one",
    )
    assert capfd.readouterr() == ("", "")  # Great Expectations keeps quiet
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["failures"][0]["samples"] == [{"row": 4, "value": 50}]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    text = console.export_text()
    assert "expect_column_values_to_be_between" in text and "row 4: 50" in text and "[bold]x" in text


def test_a_proposed_suite_accepts_its_data_and_refuses_damage(project: Project) -> None:
    frame = pd.concat([FRAME] * 10, ignore_index=True)
    proposed = propose_suite(frame, ["y"])
    assert validate(frame, recipe(proposed), project, "one").success
    for damage in ({"age": -5}, {"city": "Atlantis"}, {"age": None}, {"y": 1e6}):
        assert not validate(frame.assign(**damage), recipe(proposed), project, "two").success, damage
    assert not validate(
        frame.drop(columns="age").assign(extra=1), recipe(propose_suite(frame, ["y"])[:1]), project, "three"
    ).success


def test_great_expectations_sends_nothing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert validate(FRAME.head(3), recipe([BETWEEN]), project, "one").success


def test_a_batch_refused_for_its_pixels_shows_a_failed_expectation_in_data_docs(project: Project) -> None:
    frame = pd.DataFrame({"p_0": [0, 300, 7], "p_1": [7, -1, 7], "y": [0, 1, 1]})
    images = recipe(task="image-classification", columns=["p[2]", "y"], image=[1, 2])
    passing, refused = (validate(rows, images, project, name) for rows, name in ((frame[::2], "good"), (frame, "bad")))
    assert passing.success and passing.total == refused.total and refused.passed == refused.total - 1
    results = {path.parts[-3]: json.loads(path.read_text()) for path in project.state.rglob("results/**/*.json")}
    bad = next(result for name, result in results.items() if name == "bad")
    assert bad["statistics"]["evaluated_expectations"] == refused.total
    assert [one["expectation_config"]["type"] for one in bad["results"] if not one["success"]] == [PIXELS]
    page = Path(refused.docs).read_text()
    assert "Failed" in page and "every pixel must be a number from" in page and "p_0 = 300" in page
    assert "Succeeded" in Path(passing.docs).read_text()


def test_the_pixels_of_sixty_thousand_images_are_checked_within_seconds(project: Project) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 784))
    frame = pd.DataFrame(pixels, columns=[f"p_{i}" for i in range(784)]).assign(y=1)
    frame.loc[59_999, "p_783"] = 256
    started = time.monotonic()
    found = rows_outside(frame, 0, 255, ["y"])
    assert found["rows"] == [59_999] and found["samples"] == ["p_783 = 256"]
    assert time.monotonic() - started < 15

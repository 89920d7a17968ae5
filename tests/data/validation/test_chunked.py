"""A table in chunks has the same validation result as a whole one; expectations that need all rows are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.chunks import stored_chunks
from headrace.data.tables import read_batches
from headrace.data.validation import chunked
from headrace.data.validation.validate import ValidationReport, validate
from headrace.errors import DataError, RecipeError
from headrace.project import Project

ROWS = 240


def table() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    number = rng.normal(10, 2, ROWS).round(6)
    number[[150, 200]] = np.nan
    number[[9, 231]] = 99.0
    word = rng.choice(["aa", "bbb", "c"], ROWS)
    word[237] = "dddddd"
    ids = np.arange(ROWS)
    ids[[5, 238]] = 77
    day = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 90, ROWS), unit="D")
    return pd.DataFrame(
        {"number": number, "more": number + 1, "word": word, "id": ids, "day": day, "y": rng.normal(0, 1, ROWS)}
    )


NUMBER, WORD = {"column": "number"}, {"column": "word"}
EXPECTED: list[dict[str, Any]] = [
    {"type": "expect_column_values_to_be_between", **NUMBER, "min_value": 0, "max_value": 20},
    {"type": "expect_column_values_to_be_between", **NUMBER, "min_value": 0, "max_value": 21, "mostly": 0.99},
    {"type": "expect_column_values_to_be_between", **NUMBER, "min_value": 0, "max_value": 22, "mostly": 236 / 238},
    {"type": "expect_column_values_to_be_between", **NUMBER, "min_value": 0, "max_value": 23, "mostly": 0.9917},
    {"type": "expect_column_values_to_not_be_null", **NUMBER},
    {"type": "expect_column_values_to_not_be_null", "column": "more", "mostly": 0.99},
    {"type": "expect_column_values_to_be_null", **WORD},
    {"type": "expect_column_values_to_be_in_set", **WORD, "value_set": ["aa", "bbb", "c"]},
    {"type": "expect_column_value_lengths_to_be_between", **WORD, "min_value": 1, "max_value": 3},
    {"type": "expect_column_values_to_match_regex", **WORD, "regex": "^[a-c]+$"},
    {"type": "expect_column_pair_values_a_to_be_greater_than_b", "column_A": "number", "column_B": "more"},
    {"type": "expect_column_values_to_be_between", "column": "y", "max_value": 0, "row_condition": 'col("id") < 60',
     "condition_parser": "great_expectations"},
    {"type": "expect_column_values_to_be_unique", "column": "id"},
    {"type": "expect_column_values_to_be_unique", "column": "id", "mostly": 0.9},
    {"type": "expect_column_values_to_be_unique", "column": "number"},
    {"type": "expect_column_min_to_be_between", **NUMBER, "min_value": 6, "max_value": 9},
    {"type": "expect_column_max_to_be_between", **NUMBER, "max_value": 50},
    {"type": "expect_column_max_to_be_between", "column": "day", "max_value": "2026-03-30"},
    {"type": "expect_column_sum_to_be_between", "column": "id", "min_value": 0, "max_value": 10},
    {"type": "expect_column_mean_to_be_between", **NUMBER, "min_value": 100},
    {"type": "expect_column_stdev_to_be_between", **NUMBER, "max_value": 0.5},
    {"type": "expect_column_distinct_values_to_be_in_set", **WORD, "value_set": ["aa", "bbb", "c", "dddddd"]},
    {"type": "expect_column_distinct_values_to_contain_set", **WORD, "value_set": ["aa", "z"]},
    {"type": "expect_column_distinct_values_to_equal_set", **WORD, "value_set": ["aa", "bbb", "c"]},
    {"type": "expect_column_unique_value_count_to_be_between", **WORD, "max_value": 3},
    {"type": "expect_table_row_count_to_equal", "value": ROWS},
    {"type": "expect_table_row_count_to_be_between", "min_value": ROWS + 1},
    {"type": "expect_table_column_count_to_equal", "value": 6},
    {"type": "expect_table_columns_to_match_set", "column_set": ["number", "word"]},
    {"type": "expect_column_values_to_be_of_type", **NUMBER, "type_": "float64"},
    {"type": "expect_column_values_to_be_of_type", "column": "id", "type_": "float64"},
]  # fmt: skip


def write_batches(project: Project, frame: pd.DataFrame) -> None:
    folder: Path = project.raw_data("toy")
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pandas(frame), folder / "0000-b.parquet", row_group_size=64)


def in_chunks(project: Project, recipe: Any, labels: Any = None) -> ValidationReport:
    chunks = stored_chunks(project, recipe)
    assert chunks is not None and chunks.size < ROWS / 4
    return validate(chunks, recipe, project, "chunks", labels)


def comparable_failures(report: ValidationReport) -> list[dict[str, Any]]:
    """What the report says of each failure; numbers to nine digits, as they are added up in another order."""
    found = []
    for failure in report.failures:
        message = failure.model_dump()
        message["observed"] = f"{message['observed']:.9g}" if isinstance(message["observed"], float) else message["observed"]
        found.append(message)
    return found


def test_every_expectation_has_the_same_result_in_chunks_as_on_the_whole_table(
    project: Project, make_recipe: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(chunked, "VALUES_AT_ONCE", 100)  # duplicates are found in three passes
    write_batches(project, table())
    recipe = make_recipe(memory="14kB", expect=EXPECTED)
    whole = validate(read_batches(project, recipe), recipe, project, "whole")
    pieces = in_chunks(project, recipe)
    assert (pieces.rows, pieces.passed, pieces.total) == (whole.rows, whole.passed, whole.total)
    assert comparable_failures(pieces) == comparable_failures(whole)
    assert pieces.failing_rows == whole.failing_rows
    assert len(whole.failures) > 12 and whole.passed > 8  # both answers were asked for
    page = Path(pieces.docs).read_text()
    assert f">{ROWS}<" in page or str(ROWS) in page


def test_a_missing_value_in_a_late_chunk_is_reported_with_its_row(project: Project, make_recipe: Any) -> None:
    frame = table()
    frame.loc[217, "y"] = np.nan
    write_batches(project, frame)
    with pytest.raises(DataError, match=r"expect_column_values_to_not_be_null y: 1 rows .*row 218: None"):
        in_chunks(project, make_recipe(memory="14kB")).raise_if_failed()


def test_all_failing_rows_are_counted_and_the_first_are_named(project: Project, make_recipe: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunked, "MAX_FAILING_ROWS", 7)
    write_batches(project, table())
    bad = {"type": "expect_column_values_to_be_between", "column": "id", "max_value": -1}
    report = in_chunks(project, make_recipe(memory="14kB", expect=[bad]))
    assert report.failures[0].unexpected == ROWS and report.failing_rows == list(range(7))
    chunks = stored_chunks(project, make_recipe(memory="14kB"))
    assert chunks is not None
    assert chunked.read_rows(chunks, [0, 130, 239])["id"].tolist() == [0, 130, 239]


@pytest.mark.parametrize(
    "expectation",
    [
        {"type": "expect_column_median_to_be_between", "column": "y", "max_value": 3},
        {"type": "expect_column_values_to_be_increasing", "column": "id"},
        {"type": "expect_compound_columns_to_be_unique", "column_list": ["id", "word"]},
        {"type": "expect_column_mean_to_be_between", "column": "y", "max_value": 3, "row_condition": 'col("id") < 60',
         "condition_parser": "great_expectations"},
    ],
)  # fmt: skip
def test_an_expectation_that_needs_all_rows_is_refused_by_name(
    project: Project, make_recipe: Any, expectation: dict[str, Any]
) -> None:
    write_batches(project, table())
    with pytest.raises(RecipeError, match=expectation["type"]) as raised:
        in_chunks(project, make_recipe(memory="14kB", expect=[expectation]))
    assert "data.memory" in str(raised.value)


def test_too_many_distinct_values_are_an_error(project: Project, make_recipe: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(chunked, "MAX_DISTINCT", 50)
    write_batches(project, table())
    count = {"type": "expect_column_unique_value_count_to_be_between", "column": "id", "max_value": 30}
    with pytest.raises(DataError, match="more than 50 distinct values"):
        in_chunks(project, make_recipe(memory="14kB", expect=[count]))

"""Workbooks to score: found by the names of the model's fields, and answered as CSV."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headrace.errors import UsageError
from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.endings import check_ending
from headrace.scoring.open_rows import open_rows
from headrace.scoring.rows import BadFile
from tests.scoring.scored import CONTRACT, score
from tests.workbooks import ods, ods_cell, xls, xlsb, xlsx

NUMBERS = Contract(
    model="m",
    task="classification",
    output="probabilities",
    labels=["no", "yes"],
    target="y",
    inputs=[InputField(name="1", dtype="float32"), InputField(name="2", dtype="float32")],
    sample={},
)
"""Names of fields that a sheet of numbers has."""
CELLS = [(0, 0, 1.0), (0, 1, 2.0), (2, 0, 3.0), (2, 1, 2.5)]


def test_a_workbook_comes_back_as_csv_with_the_answers(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["Orders, 2024"],
        [],
        ["id", "price", "store"],
        [7, 1.5, 3],
        [None, None, None],
        [8, 2, "17"],
        [9, "far", 5],
    ]
    xlsx(tmp_path / "orders.xlsx", rows)
    found, lines, notes = score(tmp_path / "orders.xlsx")
    table = pd.read_csv(io.BytesIO(found), dtype=str)
    assert table[["id", "price", "store"]].to_numpy().tolist() == [["7", "1.5", "3"], ["8", "2", "17"], ["9", "far", "5"]]
    assert table["prediction"].tolist()[:2] == ["yes", "yes"] and pd.isna(table["prediction"][2])
    assert "price: expected a number, got str 'far'" in table["prediction_error"][2]
    assert notes == ["sheet 'Orders', not 'Notes'; the answers come as CSV"]
    assert [chunk.places for chunk in open_rows(tmp_path / "orders.xlsx", CONTRACT, "keep").chunks()] == [
        ["row 4", "row 6", "row 7"]
    ]
    assert ["error" in line for line in lines] == [False, False, True]
    only = pd.read_csv(io.BytesIO(score(tmp_path / "orders.xlsx", "ignore")[0]))
    assert list(only)[:2] == ["row", "prediction"] and "id" not in only


@pytest.mark.parametrize("name", ["t.xls", "t.xlsb", "t.ods", "t.dat"])
def test_any_format_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "t.xlsb":
        xlsb(path, CELLS)
    elif name == "t.ods":
        row = "<table:table-row>{}{}</table:table-row>"
        ods(path, row.format(ods_cell(1), ods_cell(2)) + row.format(ods_cell(3), ods_cell(2.5)))
    else:
        xls(path, CELLS)
    table = pd.read_csv(io.BytesIO(score(path, contract=NUMBERS)[0]))
    assert table[["1", "2"]].to_numpy().tolist() == [[3.0, 2.5]] and table["prediction"].tolist() == ["yes"]


def test_rows_from_the_middle_of_a_sheet(tmp_path: Path) -> None:
    xlsx(tmp_path / "t.xlsx", [["price", "store"], *([number, "3"] for number in range(2500))])
    file = open_rows(tmp_path / "t.xlsx", CONTRACT, "refuse")
    assert file.count() == 2500
    assert [value["price"] for chunk in file.chunks(1700) for value in chunk.values] == list(range(1700, 2500))


def test_what_cannot_be_scored_is_said(tmp_path: Path) -> None:
    xlsx(tmp_path / "t.xlsx", [["prize", "shop"], [1, 2]])
    with pytest.raises(BadFile, match="no row at the beginning of a sheet has the names of the model's fields"):
        open_rows(tmp_path / "t.xlsx", CONTRACT, "keep")
    xlsx(tmp_path / "t.xlsx", [["price", "stor"], [1, 2]])
    with pytest.raises(BadFile, match="column 'store' is missing; did you mean 'stor'"):
        open_rows(tmp_path / "t.xlsx", CONTRACT, "keep")
    xls(tmp_path / "far.xls", [(0, 0, 1.0), (65_535, 65_535, 1.0)])
    with pytest.raises(BadFile, match="GiB of memory; remove the cells far to the right") as error:
        open_rows(tmp_path / "far.xls", CONTRACT, "keep")
    assert error.value.code == "bad_workbook"


def test_the_output_cannot_be_a_workbook(tmp_path: Path) -> None:
    xlsx(tmp_path / "t.xlsx", [["price", "store"], [1, "3"]])
    file = open_rows(tmp_path / "t.xlsx", CONTRACT, "keep")
    with pytest.raises(UsageError, match=r"the answers to t\.xlsx come as csv, not as scored\.xlsx") as error:
        check_ending(file, tmp_path / "t.xlsx", tmp_path / "scored.xlsx", "--output")
    assert "scored.csv" in str(error.value.hint)

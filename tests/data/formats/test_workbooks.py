"""Workbooks of every format, and those that would take gigabytes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace import spreadsheets
from headrace.data.formats.files import read_file
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError
from tests.workbooks import ods, ods_cell, write_xlsx, xls, xlsb, xlsx

FAR = [(0, 0, 1.0), (1_048_575, 16_383, 2.5)]
NAMED = [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 3.0), (1, 1, 2.5)]


def repeated(rows: int, columns: int) -> str:
    return f'<table:table-row table:number-rows-repeated="{rows}">{ods_cell(1, columns)}</table:table-row>'


@pytest.mark.parametrize("write", [xls, xlsb], ids=["xls", "xlsb"])
def test_binary_workbooks_are_read(tmp_path: Path, write: Callable[[Path, object], None]) -> None:
    path = tmp_path / f"t.{write.__name__}"
    write(path, NAMED)
    assert read_file(path, ReadOptions()).to_pydict() == {"1": [3], "2": [2.5]}


def test_opendocument_is_read(tmp_path: Path) -> None:
    row = "<table:table-row>{}{}</table:table-row>"
    ods(tmp_path / "t.ods", row.format(ods_cell(1), ods_cell(2)) + row.format(ods_cell(3), ods_cell(2.5)))
    assert read_file(tmp_path / "t.ods", ReadOptions()).to_pydict() == {"1": [3], "2": [2.5]}


def far_xlsx(path: Path) -> None:
    cell = '<c r="{}"><v>1</v></c>'
    write_xlsx(path, f'<row r="1">{cell.format("A1")}</row><row r="1048576">{cell.format("XFD1048576")}</row>')


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.xlsx", far_xlsx),
        ("t.xlsb", lambda path: xlsb(path, FAR)),
        ("t.xls", lambda path: xls(path, [(0, 0, 1.0), (65_535, 65_535, 1.0)])),
        ("t.xls", lambda path: xls(path, [(0, 0, 1.0), (65_535, 255, 1.0)], sheets=20)),  # all sheets are read at once
        ("t.xls", lambda path: xls(path, [(0, 0, 1.0), (65_535, 700, 1.0)])),
        ("t.ods", lambda path: ods(path, repeated(1_000_000, 16_000))),
        ("t.ods", lambda path: ods(path, repeated(9_000, 9_000))),
    ],
)
def test_cells_far_apart_do_not_fill_the_memory(
    tmp_path: Path, name: str, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as error:
        read_file(tmp_path / name, ReadOptions())
    said = error.value.message
    assert any(part in said for part in ("needs more than 2 GiB of memory", "a sheet spans", "Cell limit exceeded")), said
    assert error.value.hint and "export the sheet as CSV" in error.value.hint
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_modules_of_the_current_folder_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('taken')\n")
    (tmp_path / "headrace").mkdir()
    (tmp_path / "headrace" / "__init__.py").write_text("raise SystemExit('taken')\n")
    xlsx(tmp_path / "t.xlsx", [["a"], [1]])
    monkeypatch.chdir(tmp_path)
    assert spreadsheets.open_workbook(Path("t.xlsx")).sheet_names == ["Notes", "Orders"]


def test_a_workbook_is_measured_once_until_it_changes(tmp_path: Path) -> None:
    xlsx(tmp_path / "t.xlsx", [["a"], [1]])
    spreadsheets._measured.cache_clear()
    for _ in range(3):
        spreadsheets.open_workbook(tmp_path / "t.xlsx")
    assert spreadsheets._measured.cache_info().misses == 1
    xlsx(tmp_path / "t.xlsx", [["a"], [1], [2]])
    spreadsheets.open_workbook(tmp_path / "t.xlsx")
    assert spreadsheets._measured.cache_info().misses == 2


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04damaged", b"\xd0\xcf\x11\xe0" + bytes(600)])
def test_a_damaged_workbook_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.xlsx").write_bytes(content)
    with pytest.raises(DataError, match=r"not a workbook that can be read|the file is empty"):
        read_file(tmp_path / "t.xlsx", ReadOptions())


def test_half_of_the_memory_of_a_process_is_for_the_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2 << 30, resource.RLIM_INFINITY))
    assert spreadsheets._memory() == 1 << 30
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert spreadsheets._memory() == 2 << 30

"""Text tables of any dialect, read as the recipe says in `data.read`."""

from __future__ import annotations

import bz2
import datetime
import gzip
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from headrace.data.formats.column_rules import ColumnRules
from headrace.data.formats.delimited import read_csv
from headrace.data.formats.dialects import stream_delimited
from headrace.data.formats.files import plain_schema, read_file
from headrace.data.formats.options import ReadOptions
from headrace.data.formats.streams import TableStream
from headrace.errors import DataError
from headrace.recipe.read import ReadConfig
from headrace.runtime.values import ValueRule


def stream(path: Path, header: bool = True, only: set[str] | None = None, **read: Any) -> TableStream:
    return stream_delimited(path, ".csv", ReadOptions(read=ReadConfig(**read), header=header, only=only))


def saved(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


DAY = datetime.datetime(2024, 2, 1)


@pytest.mark.parametrize(
    ("text", "read", "expected"),
    [
        ("a;b\n1,5;x\n", {"separator": ";", "decimal": ","}, {"a": 1.5, "b": "x"}),
        ("a;b\n1.234,5;1.000\n", {"separator": ";", "decimal": ",", "thousands": "."}, {"a": 1234.5, "b": 1000}),
        ("a\tb\n1 234,5\tx\n", {"separator": "\t", "decimal": ",", "thousands": " "}, {"a": 1234.5, "b": "x"}),
        ("a|b\n'x|y'|2\n", {"separator": "|", "quote": "'"}, {"a": "x|y", "b": 2}),
        ('a,b\n"x \\"y\\"",2\n', {"escape": "\\"}, {"a": 'x "y"', "b": 2}),
        ('a\tb\n5" pipe\t2\n', {"separator": "tab", "quote": ""}, {"a": '5" pipe', "b": 2}),
        ("a,zip\n1,01234\n", {}, {"a": 1, "zip": "01234"}),
        ("a,d\n1,2024-02-01\n", {}, {"a": 1, "d": DAY}),
        ("# note\na,b\n# one more\n1,x\n", {"comment": "#"}, {"a": 1, "b": "x"}),
        ("Sales of 2024\n\na,b\n1,x\n", {"skip_lines": 2}, {"a": 1, "b": "x"}),
        ("a,b\n1,x\n\nTotal: 1\n", {"skip_last": 2}, {"a": 1, "b": "x"}),
        ("a,b\r\n1,x\r\n", {"skip_last": 0, "comment": "#"}, {"a": 1, "b": "x"}),
    ],
)
def test_a_dialect_is_read_as_the_recipe_says(
    tmp_path: Path, text: str, read: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert read_file(saved(tmp_path, text), ReadOptions(read=ReadConfig(**read))).to_pylist() == [expected]


@pytest.mark.parametrize(
    ("text", "rules", "expected"),
    [
        ("a,n\n1,7\n", {"rules": {"n": ValueRule(type="text")}}, {"a": 1, "n": "7"}),
        ('a,p\n1,"$1,234.50"\n', {"rules": {"p": ValueRule(strip=["$"])}}, {"a": 1, "p": 1234.5}),
        ("a,p\n1,-12 %\n", {"rules": {"p": ValueRule(strip=["%"])}}, {"a": 1, "p": -12.0}),
        ("a,p\n1,(5.00)\n", {"rules": {"p": ValueRule()}}, {"a": 1, "p": -5.0}),
        ("a,d\n1,01.02.2024\n", {"rules": {"d": ValueRule(type="time", format="%d.%m.%Y")}}, {"a": 1, "d": DAY}),
        ("a,b\n?,x\n7,NA\n", {"missing": ("?",)}, {"a": None, "b": "x"}),
        ("a,b\n-999,x\n7,y\n", {"missing": ("-999",)}, {"a": None, "b": "x"}),
        ("a, b\n1, x\n", {"trim": True}, {"a": 1, "b": "x"}),
    ],
)
@pytest.mark.parametrize("read", [None, ReadConfig()])
def test_values_are_read_by_the_rules_of_their_columns(
    tmp_path: Path, text: str, rules: dict[str, Any], expected: dict[str, Any], read: ReadConfig | None
) -> None:
    if read is None and rules == {"trim": True}:
        pytest.skip("names of columns are trimmed where the recipe says how the file is read")
    table = read_file(saved(tmp_path, text), ReadOptions(read=read, rules=ColumnRules(**rules)))
    assert table.to_pylist()[0] == expected


@pytest.mark.parametrize("read", [None, ReadConfig()])
def test_codes_keep_their_zeros_and_digits_in_a_stream(tmp_path: Path, read: ReadConfig | None) -> None:
    path = saved(tmp_path, "zip,code\n01234,12345678901234567890\n10115,12345678901234567891\n")
    table = stream_delimited(path, ".csv", ReadOptions(read=read)).table()
    assert table.to_pydict() == {"zip": ["01234", "10115"], "code": ["12345678901234567890", "12345678901234567891"]}
    numbers = stream_delimited(path, ".csv", ReadOptions(read=read, numbers=["zip"])).table()
    assert numbers["zip"].to_pylist() == [1234, 10115]


def test_a_missing_value_by_rule_is_the_only_one(tmp_path: Path) -> None:
    options = ReadOptions(read=ReadConfig(), rules=ColumnRules(missing=("?",)))
    table = read_file(saved(tmp_path, "a,b\n?,NA\n7,null\n"), options)
    assert table.to_pydict() == {"a": [None, 7], "b": ["NA", "null"]}


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1", "mac_roman", "cp1250", "utf-32"]
)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = saved(tmp_path, "größe;ja\n1;é\n", encoding)
    assert stream(path, separator=";", encoding=encoding).table().to_pylist() == [{"größe": 1, "ja": "é"}]


def zipped(path: Path, raw: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("table.csv", raw)


def zstd(path: Path, raw: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(raw)


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        (".gz", lambda path, raw: path.write_bytes(gzip.compress(raw))),
        (".bz2", lambda path, raw: path.write_bytes(bz2.compress(raw))),
        (".xz", lambda path, raw: path.write_bytes(lzma.compress(raw))),
        (".zst", zstd),
        (".zip", zipped),
    ],
)
def test_compressed_files(tmp_path: Path, ending: str, write: Callable[[Path, bytes], None]) -> None:
    path = tmp_path / f"table.csv{ending}"
    write(path, b"a;b\n1;x\n")
    read = ReadConfig(separator=";")
    assert read_file(path, ReadOptions(read=read)).to_pylist() == [{"a": 1, "b": "x"}]
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"truncated or damaged|the file has no rows"):
        read_file(path, ReadOptions(read=read))


def test_a_file_without_header_has_the_names_of_the_recipe(tmp_path: Path) -> None:
    path = saved(tmp_path, "39, State-gov\n50, Private\n")
    options = ReadOptions(read=ReadConfig(), rules=ColumnRules(trim=True), header=False, names=["age", "work"])
    assert stream_delimited(path, ".csv", options).table().to_pydict() == {"age": [39, 50], "work": ["State-gov", "Private"]}


def test_columns_that_are_not_asked_for_never_spoil_a_file(tmp_path: Path) -> None:
    path = saved(tmp_path, ",a,a,b\n0,1,2,3\n")
    assert stream(path, only={"a", "b"}).table().to_pylist() == [{"a": 1, "b": 3}]
    with pytest.raises(DataError, match="'a' appears twice"):
        stream(path)


TYPED = """i,f,late,t,d,s,empty,gaps,quoted,day_or_text,clock,yes,yes_or_text
1,1,1,x,2024-01-01,2024-01-01 10:00:00,,1,"",2024-01-01,08:15,true,true
2,2.5,2,y,2024-01-02,2024-01-01 10:00:01,,,"5",2024-01-02,09:30,False,False
3,-3e5,3.5,"NA",2024-01-03,2024-01-03,,NA,"6",later,10:45,,2
"""


def test_types_over_blocks_are_those_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, TYPED)
    at_once = read_csv(path, ".csv", ReadOptions())
    monkeypatch.setattr("headrace.data.formats.dialects.BLOCK_BYTES", 90)
    in_blocks = stream_delimited(path, ".csv", ReadOptions())
    assert len(list(in_blocks.blocks())) > 1
    table = at_once.cast(plain_schema(at_once.schema, path))
    assert in_blocks.table().cast(plain_schema(in_blocks.schema, path)).equals(table)


@pytest.mark.parametrize(
    ("raw", "read", "message", "hint"),
    [
        (b"a,b\n1,2\n1,2,3\n4\n", {}, "2 columns were expected, and row 3 has 3, row 4 has 1", "separator"),
        (b"a;b\n1;2\n", {}, "looks separated by semicolons", "data.read.separator"),
        (b"a,b\n1,2\nTotal\n", {}, "may be truncated, or has lines below", "skip_last"),
        (b"a,b\n\xfc,2\n", {}, r"line 2: byte 0xfc is not utf-8", "cp1252"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "line 1: byte 0xff", "utf-16"),
        (b"a,b\n1,2\n\0,3\n", {}, "line 3: a NUL byte", "export"),
    ],
)
def test_faults_are_named_with_row_and_value(tmp_path: Path, raw: bytes, read: dict[str, Any], message: str, hint: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        stream(path, only={"a", "b"}, **read)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("raw", "rule", "message"),
    [
        (b"a,b\n1,x y\n2,5 kg\n3,7 g\n", ValueRule(strip=["kg"]), "2 values .* data row 1: 'x y', data row 3: '7 g'"),
        (b"a,b\n1,31.12.2024\n2,2024\n", ValueRule(type="time", format="%d.%m.%Y"), "data row 2: '2024'"),
    ],
)
def test_values_that_do_not_fit_their_rule_are_named(tmp_path: Path, raw: bytes, rule: ValueRule, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as caught:
        read_file(path, ReadOptions(read=ReadConfig(), rules=ColumnRules(rules={"b": rule})))
    assert "data.missing" in str(caught.value.hint)


def test_all_faults_of_a_kind_are_one_message_with_the_first_ten_and_a_count(tmp_path: Path) -> None:
    rows = "".join(f"{i},2,3\n" for i in range(500))
    with pytest.raises(DataError, match=r"row 2 has 3, .*row 11 has 3 and 490 more rows"):
        stream(saved(tmp_path, "a,b\n1,2\n" * 0 + "a,b\n" + rows))


def test_a_huge_cell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.data.formats.dialects.BLOCK_BYTES", 1 << 16)
    with pytest.raises(DataError, match="a row is larger than"):
        stream(saved(tmp_path, "a,b\n1," + "x" * (1 << 20) + "\n2,y\n"))


def test_a_row_that_is_larger_than_a_usual_block_is_read_in_larger_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.data.formats.dialects.READ_BYTES", 1 << 10)
    monkeypatch.setattr("headrace.data.formats.dialects.BLOCK_BYTES", 1 << 16)
    rows = "".join(f"{i},y\n" for i in range(2000))
    found = stream(saved(tmp_path, f"a,b\n{rows}7,{'x' * 5000}\n8,\n")).table()
    assert found.num_rows == 2002 and found["a"][-2].as_py() == 7 and found["b"][-2].as_py() == "x" * 5000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decimal": ",", "thousands": ","}, "both ','"),
        ({"separator": ";;"}, "one ASCII character"),
        ({"separator": '"'}, "also the quote"),
        ({"encoding": "cp12521"}, "unknown encoding"),
        ({"query": "select 1", "table": "t"}, "remove one"),
    ],
)
def test_a_dialect_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReadConfig(**fields)

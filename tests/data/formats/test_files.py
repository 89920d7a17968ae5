from __future__ import annotations

import gzip
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data.formats.files import read_file
from headrace.data.formats.options import ReadOptions
from headrace.errors import DataError

TEXT = "a,b,c\n1,x,0.5\n2,y,1.5\n3,z,2.5\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.zip", ".tab", ".tsv", ".parquet"])
def test_every_format_gives_the_same_table(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    if ending == ".csv.gz":
        write(path, gzip.compress(TEXT.encode()))
    elif ending == ".csv.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", TEXT)
    elif ending == ".parquet":
        pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0.5, 1.5, 2.5]}), path)
    else:
        write(path, TEXT if ending == ".csv" else TEXT.replace(",", "\t"))
    assert read_file(path).to_pydict() == {"a": [1, 2, 3], "b": ["x", "y", "z"], "c": [0.5, 1.5, 2.5]}


def test_a_csv_truncated_in_its_last_row_is_refused_with_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", TEXT[: TEXT.rindex(",z")])
    with pytest.raises(DataError, match=r"row 4 has 1 columns where 3 were expected .*truncated") as caught:
        read_file(path)
    assert str(path) in str(caught.value) and caught.value.hint


@pytest.mark.parametrize("ending", [".csv.gz", ".csv.zip", ".parquet"])
def test_a_truncated_file_is_refused_and_not_read_in_part(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t{ending}"
    text = "a,b\n" + "\n".join(f"{i},{i * 7919}" for i in range(5000)) + "\n"
    if ending == ".csv.gz":
        write(path, gzip.compress(text.encode()))
    elif ending == ".csv.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("t.csv", text)
    else:
        pq.write_table(pa.table({"a": list(range(5000))}), path)
    write(path, path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"truncated|damaged|Parquet"):
        read_file(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 bytes"):
        read_file(write(tmp_path / "t.csv", ""))


def test_a_missing_file_suggests_a_close_match(tmp_path: Path) -> None:
    write(tmp_path / "flights.csv", TEXT)
    with pytest.raises(DataError, match=r"did you mean 'flights\.csv'"):
        read_file(tmp_path / "flihgts.csv")


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        ("a,b\n1,x\n2,é\n".encode("cp1252"), "row 3, column 'b'"),
        (TEXT.encode("utf-16"), "first line"),
        ("é,b\n1,2\n".encode("cp1252"), "first"),
    ],
)
def test_text_that_is_not_utf8_is_refused_with_its_place(tmp_path: Path, raw: bytes, place: str) -> None:
    with pytest.raises(DataError, match="not UTF-8") as caught:
        read_file(write(tmp_path / "t.csv", raw))
    assert place in str(caught.value)


def test_unquoted_NA_is_missing_and_quoted_NA_is_text(tmp_path: Path) -> None:
    table = read_file(write(tmp_path / "t.csv", 'n,country\nNA,"NA"\n2,SE\n'))
    assert table.to_pydict() == {"n": [None, 2], "country": ["NA", "SE"]}


def test_numbers_with_quoted_missing_values_are_numbers(tmp_path: Path) -> None:
    table = read_file(write(tmp_path / "t.csv", 'n,m\n"","1.5"\n"2",""\n'))
    assert table.to_pydict() == {"n": [None, 2], "m": [1.5, None]}


def test_types_are_inferred_from_the_whole_file(tmp_path: Path) -> None:
    body = "\n".join(["1"] * 400_000 + ["late"])
    assert read_file(write(tmp_path / "t.csv", f"a\n{body}\n")).schema.field("a").type == pa.string()


def test_text_columns_keep_leading_zeros(tmp_path: Path) -> None:
    assert read_file(write(tmp_path / "t.csv", "zip\n01234\n"), ReadOptions(text=["zip"])).to_pydict() == {"zip": ["01234"]}


def test_a_duplicate_column_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' appears twice"):
        read_file(write(tmp_path / "t.csv", "a,a\n1,2\n"))


def test_a_csv_without_header_takes_the_given_names(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "1,2\n3,4\n")
    assert read_file(path, ReadOptions(header=False, names=["a", "b"])).to_pydict() == {"a": [1, 3], "b": [2, 4]}
    with pytest.raises(DataError, match="2 columns, and the recipe names 3"):
        read_file(path, ReadOptions(header=False, names=["a", "b", "c"]))


def test_nested_parquet_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "tags": [["x"]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'tags'"):
        read_file(tmp_path / "t.parquet")


def test_an_encoding_is_decoded_and_an_invalid_byte_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b\n1,“x”\n2,é\n".encode("cp1252"))
    assert read_file(path, ReadOptions(encoding="cp1252")).to_pydict() == {"a": [1, 2], "b": ["“x”", "é"]}
    path.write_bytes(b"a,b\n1,x\n2,\x81\n")
    with pytest.raises(DataError, match="byte 0x81 is not valid cp1252 text") as caught:
        read_file(path, ReadOptions(encoding="cp1252"))
    assert str(caught.value.where).endswith("line 3") and "data.encoding" in str(caught.value.hint)
    assert read_file(path, ReadOptions(encoding="mac_roman")).to_pydict()["b"] == ["x", "Å"]


def test_rows_below_the_header_are_skipped_and_still_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tab", "a\tb\nc\td\nclass\t\n\n1\tx\n2\ty\n")
    assert read_file(path, ReadOptions(skip_rows=2)).to_pydict() == {"a": [1, 2], "b": ["x", "y"]}
    with pytest.raises(DataError, match="row 6 has 1 columns where 2"):
        read_file(write(tmp_path / "t.tab", "a\tb\nc\td\nclass\t\n0\tw\n1\tx\n2\n3\tz\n"), ReadOptions(skip_rows=2))


def test_data_format_overrides_the_file_name(tmp_path: Path) -> None:
    path = write(tmp_path / "cora.content", "1\tx\n")
    with pytest.raises(DataError, match="unknown format") as caught:
        read_file(path)
    assert "data.format" in str(caught.value.hint)
    assert read_file(path, ReadOptions(format="tsv", header=False, names=["a", "b"])).to_pydict() == {"a": [1], "b": ["x"]}
    packed = write(tmp_path / "t.data.gz", gzip.compress(TEXT.encode()))
    assert read_file(packed, ReadOptions(format="csv")).num_rows == 3


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    text = '{"a": 1, "b": "x"}\n{"b": "é", "a": null}\n'
    assert read_file(write(tmp_path / "t.jsonl", text)).to_pydict() == {"a": [1, None], "b": ["x", "é"]}
    assert read_file(write(tmp_path / "t.jsonl.gz", gzip.compress(text.encode()))).num_rows == 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"a": 1}\n{"a": ', "not valid JSON lines"),
        (b'{"a": 1}\n{"a": "x"}\n', "not valid JSON lines.*row 1"),
        (b'{"a": "x"}\n{"a": "\xe9"}\n', "line 2: not UTF-8"),
    ],
)
def test_truncated_mixed_or_undecodable_json_lines_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_file(write(tmp_path / "t.jsonl", raw))


def test_a_wide_table_is_searched_for_codes_once_and_not_for_each_column(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    path.write_text("".join(",".join(["7"] * 1500) + "\n" for _ in range(600)))
    started = time.process_time()
    table = read_file(path, ReadOptions(header=False, names=[f"p{i}" for i in range(1500)]))
    assert table.shape == (600, 1500) and time.process_time() - started < 20, "seconds, of which a search takes 0.1"

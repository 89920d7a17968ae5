"""Files to score as they lie around: in any dialect and encoding, with ids, decimals, an index, and names that mislead."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.open_rows import open_rows
from headrace.scoring.refusals import Refusals, describe
from headrace.scoring.rows import BadFile, BadRow, Others
from tests.scoring.scored import CONTRACT, score

ROWS = [{"price": 1234.5, "store": "17", "member": True}, {"price": 12, "store": "3", "member": None}]


def rows_of(path: Path, others: Others = "keep", contract: Contract = CONTRACT) -> list[Any]:
    return [row for chunk in open_rows(path, contract, others).chunks() for row in chunk.values]


# -- CSV


@pytest.mark.parametrize(
    "text",
    [
        "id,price,store,member\n007,1234.5,17,true\n8,12,3,\n",
        "id;price;store;member\r\n007;1.234,50;17;Wahr or true\r\n8;12,0;3;\r\n".replace("Wahr or true", "True"),
        "sep=;\r\nid;price;store;member\r\n007;1234,5;17;TRUE\r\n8;12;3;NA\r\n",
        "id\tstore\tmember\tprice\n007\t17\t1\t1234.5\n8\t3\t\t12",
        "Customers, as of Monday\n\nid|price|store|member\n007|1234.5|17|yes\n\n8|12|3|n/a\n",
        'id,price,store,member\n"a\nb","1,234.50",17,"t"\n8,"12",3,""\n',
        "id, price, store, member\n007, 1234.5, 17, true\n8, 12, 3,\n",
        "'id','price','store','member'\n'a,b','1234.5','17','true'\n'8','12','3',''\n",
    ],
)
def test_csv_of_any_dialect_gives_the_same_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text, newline="")
    assert rows_of(tmp_path / "rows.csv") == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_rows_come_back_byte_for_byte_in_their_encoding(tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    text = 'Größe;price;store;x\r\n"a;b";1,50;17; é \r\n007;"2,0";3;""\r\n'
    (tmp_path / "rows.txt").write_bytes(pack(text.encode(encoding)))
    found, _, notes = score(tmp_path / "rows.txt")
    lines = found.decode(encoding).splitlines()
    assert lines[0] == (
        "Größe;price;store;x;prediction;probability;probability_no;probability_yes;"
        "prediction_error;prediction_id;prediction_row;prediction_warnings"
    )
    assert lines[1:] == ['"a;b";1,50;17; é ;yes;0,75;0,25;0,75;;m@1:x;0;', '007;"2,0";3;"";yes;0,75;0,25;0,75;;m@1:x;1;']
    assert notes == [f"CSV separated by semicolons, decimal commas, {encoding}"]


def test_errors_stand_beside_their_row_and_rows_of_another_length_stay_in_their_columns(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,price,store\n1,far,3\n2\n3,4,5,6\n4,1,17\n")
    found, lines, _ = score(tmp_path / "rows.csv")
    table = pd.read_csv(io.BytesIO(found), dtype=str)
    assert table["id"].tolist() == ["1", "2", "3", "4"]
    assert table["prediction"].tolist()[:3] == [None] * 3 or table["prediction"].isna().tolist() == [True, True, True, False]
    assert table["prediction_error"].tolist()[:3] == [
        "contract_violation: price: expected a number, got str 'far'",
        "wrong_columns: the row has 1 cells, and the header 3 columns",
        "wrong_columns: the row has 4 cells, and the header 3 columns",
    ]
    assert table["prediction_row"].tolist()[3] == "3"
    assert ["error" in line for line in lines] == [True, True, True, False]


def test_answers_only_have_the_number_of_their_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,price,store\n1,2,3\n\n2,1,17\n")
    found, _, _ = score(tmp_path / "rows.csv", "ignore")
    table = pd.read_csv(io.BytesIO(found))
    assert list(table)[:2] == ["row", "prediction"] and "id" not in table
    assert table["row"].tolist() == [0, 1]


def test_a_column_with_the_name_of_an_answer_keeps_its_name_and_this_is_noted(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("price,store,prediction,prediction_2\n1,3,no,no\n")
    found, _, notes = score(tmp_path / "rows.csv")
    head = found.decode().splitlines()[0].split(",")
    assert head[2:6] == ["prediction", "prediction_2", "prediction_3", "probability_3"]
    assert "so the answers are in prediction_3 and so on" in notes[-1]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_a_whole_number_is_not_answered_as_its_neighbour(tmp_path: Path, name: str) -> None:
    numbers = [2**53, 2**53 + 1, 2**53 + 2]
    table = pd.DataFrame({"price": numbers, "store": "3"})
    if name.endswith("parquet"):
        table.to_parquet(tmp_path / name)
    elif name.endswith("jsonl"):
        table.to_json(tmp_path / name, orient="records", lines=True)
    else:
        table.to_csv(tmp_path / name, index=False)
    _, lines, _ = score(tmp_path / name)
    assert ["error" in line for line in lines] == [False, True, False]
    assert (
        "a number that float64 has exactly" in lines[1]["error"]["message"] and "9007199254740993" in lines[1]["error"]["got"]
    )


def test_a_level_that_looks_like_a_gap_is_a_level(tmp_path: Path) -> None:
    country = InputField(name="country", dtype="string", levels=["NA", "DE"])
    contract = CONTRACT.model_copy(update={"inputs": [country]})
    (tmp_path / "rows.csv").write_text("country\nNA\nnull\nDE\n")
    assert rows_of(tmp_path / "rows.csv", contract=contract) == [{"country": v} for v in ("NA", None, "DE")]


# -- JSON lines


def test_a_byte_order_mark_blank_lines_and_carriage_returns_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"price": 1, "store": 3}\r\n\r\n{"price": 2, "store": 17}')
    assert rows_of(path) == [{"price": 1, "store": 3}, {"price": 2, "store": 17}]
    assert [json.loads(line)["row"] for line in score(path, "ignore")[0].splitlines()] == [0, 1]


def test_json_lines_come_back_as_they_were_with_the_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"  # the content decides
    path.write_bytes(b'{"price": 1.50, "store": 3, "ref": 12345678901234567890}\n{}\nno\n[1]\n')
    found, _, _ = score(path)
    lines = found.decode().splitlines()
    assert lines[0].startswith('{"price": 1.50, "store": 3, "ref": 12345678901234567890, "prediction":{"label":"yes"')
    assert [json.loads(line)["prediction"] is None for line in lines] == [False, True, True, True]
    assert [json.loads(line).get("line") for line in lines] == [None, None, "no", "[1]"]
    path.write_bytes(b'{"price": 1, "store": 3, "prediction": 4}\n')
    assert {"prediction": 4}.items() <= json.loads(score(path)[0]).items()
    assert json.loads(score(path)[0])["prediction_2"]["label"] == "yes"


def test_a_field_may_have_the_name_of_its_column_in_training(tmp_path: Path) -> None:
    field = InputField(name="text", column="message", dtype="string")
    contract = CONTRACT.model_copy(update={"inputs": [field]})
    rows = pd.DataFrame({"id": [1, 2], "message": ["so, so", "well"]})
    (csv := tmp_path / "rows.csv").write_text(rows.to_csv(index=False, sep=";"))
    (lines := tmp_path / "rows.jsonl").write_text(rows.to_json(orient="records", lines=True))
    rows.to_parquet(tmp_path / "rows.parquet")
    for path in (csv, lines, tmp_path / "rows.parquet"):
        values = [value for chunk in open_rows(path, contract, "ignore").chunks() for value in chunk.values]
        assert values == [{"text": "so, so"}, {"text": "well"}]
    rows.assign(text="the field itself").to_csv(csv, index=False)
    values = [value for chunk in open_rows(csv, contract, "ignore").chunks() for value in chunk.values]
    assert values == [{"text": "the field itself"}] * 2
    assert score(csv, contract=contract)[0].decode().splitlines()[0].startswith("id,message,text,prediction")


# -- Parquet


def parquet(tmp_path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_decimals_codes_and_the_index_of_pandas_are_taken(tmp_path: Path) -> None:
    prices = pa.array([Decimal("1.50"), Decimal("2.25")], pa.decimal128(9, 2))
    path = parquet(tmp_path, price=prices, store=pa.array([3, 17]), __index_level_0__=pa.array([7, 8]))
    found = rows_of(path, "refuse")
    assert found == [{"price": 1.5, "store": 3}, {"price": 2.25, "store": 17}]
    assert CONTRACT.to_feeds(found)["store"].tolist() == ["3", "17"]


def test_category_codes_booleans_and_dates_are_taken(tmp_path: Path) -> None:
    day, flag = InputField(name="day", dtype="string"), InputField(name="flag", dtype="string", levels=["False", "True"])
    contract = CONTRACT.model_copy(update={"inputs": [*CONTRACT.inputs, day, flag]})
    days = pa.array([date(2026, 1, 2), None])
    stores = pa.array(["3", "17"]).dictionary_encode()
    path = parquet(tmp_path, price=pa.array([1, 2]), store=stores, day=days, flag=[True, False], member=[None, True])
    assert rows_of(path, "keep", contract) == [
        {"price": 1, "store": "3", "member": None, "day": "2026-01-02", "flag": "True"},
        {"price": 2, "store": "17", "member": True, "day": None, "flag": "False"},
    ]


def test_the_result_of_parquet_has_the_types_and_the_index_of_the_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "price": [Decimal("1.50"), Decimal("2.25")],
            "store": pd.Categorical(["3", "17"]),
            "day": [date(2026, 1, 2), None],
            "emb": [[1.0, 2.0], None],
            "at": pd.to_datetime(["2026-01-02T03:04Z", None]),
            "y": ["no", None],
        },
        index=[5, 7],
    )
    frame.to_parquet(tmp_path / "rows.csv")  # the content decides
    found, _, _ = score(tmp_path / "rows.csv")
    before, after = pq.read_schema(tmp_path / "rows.csv"), pq.read_schema(io.BytesIO(found))
    assert [after.field(name) for name in before.names] == list(before)
    scored = pd.read_parquet(io.BytesIO(found))
    pd.testing.assert_frame_equal(scored[list(frame)], pd.read_parquet(tmp_path / "rows.csv"))
    assert scored["prediction"].tolist() == ["yes", "yes"]


def test_rows_from_the_middle_of_a_file_are_those_of_the_whole(tmp_path: Path) -> None:
    pq.write_table(pa.table({"price": np.arange(5000.0), "store": ["3"] * 5000}), tmp_path / "p", row_group_size=700)
    (tmp_path / "c").write_text("price,store\n" + "".join(f"{i},3\n\n" for i in range(5000)))
    (tmp_path / "j").write_text("".join(f'{{"price": {i}, "store": 3}}\n\n' for i in range(5000)))
    for name in ("p", "c", "j"):
        chunks = list(open_rows(tmp_path / name, CONTRACT, "keep").chunks(2345))
        assert [row["price"] for chunk in chunks for row in chunk.values] == list(range(2345, 5000))
        assert max(len(chunk.values) for chunk in chunks) <= 1000


# -- refused files


@pytest.mark.parametrize(("column", "why"), [("y", "it is what the model predicts"), ("prise", "did you mean 'price'")])
def test_a_column_too_many_is_named_with_what_to_do(tmp_path: Path, column: str, why: str) -> None:
    path = parquet(tmp_path, price=pa.array([1.0]), store=pa.array(["3"]), **{column: pa.array([1.0])})
    with pytest.raises(BadFile) as caught:
        open_rows(path, CONTRACT, "refuse")
    assert caught.value.message.startswith(f"the model has no field '{column}'; {why}")
    assert caught.value.message.endswith("leave the column out of the file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,stor\n1,2\n", "no line at the beginning of the file has the names of the model's fields"),
        ("id,price\n1,2\n", "the column 'store' is missing; the file has id, price"),
        ("price,price,store\n1,2,3\n", r"the column 'price' appears twice \(columns 1 and 2\)"),
        ("price,store,membr\n1,2,3\n", "the file has no column 'member', but 'membr'; rename that, or add an empty column"),
        ('price,store\n1,3\n2,"17\n3,3\n', "line 3: the file ends within quotes that begin in this row"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(BadFile, match=message):
        rows_of(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (codecs.BOM_UTF8 + b"\x00" * 100, "no line at the beginning"),
        (b"PAR1 and nothing more", "not readable Parquet"),
        (b"PAR1" + b"\xff" * 400 + b"\xff\xff\xff\x7fPAR1", "not readable Parquet"),
        (gzip.compress(b"price,store\n1,3\n" * 9, mtime=0)[:-12], "truncated or damaged"),
        (b"\x1f\x8b\x08" + b"\x00" * 30, "truncated or damaged"),
        (b"PK\x03\x04 and nothing more", "truncated or damaged"),
        (b"\xd0\xcf\x11\xe0", "not a workbook that can be read: Cannot detect file format; save it again as xlsx"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"", "no line at the beginning"),
    ],
)
def test_damaged_and_unknown_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(BadFile, match=message):
        rows_of(tmp_path / "rows.csv")


def test_a_zip_holds_one_table(tmp_path: Path) -> None:
    def packed(**members: str) -> Path:
        with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in members.items():
                archive.writestr(name.replace("__", "."), text)
        return tmp_path / "rows.zip"

    assert rows_of(packed(rows__csv="price,store,member\n1234.5,17,true\n12,3,\n", README="x")) == ROWS
    assert rows_of(packed(rows__jsonl='{"price": 1, "store": 3}\n')) == [{"price": 1, "store": 3}]
    with pytest.raises(BadFile, match=r"a zip holds one table .*; it has 'a\.csv', 'b\.csv'"):
        rows_of(packed(a__csv="price,store\n", b__csv="price,store\n"))


def test_refused_rows_are_summed_up_by_reason_with_the_first_ten_places() -> None:
    found = Refusals()
    for row in range(25):
        error = {"code": "c", "message": "", "path": "row.price", "expected": "a number", "got": f"str '{row}'"}
        found.add({"row": row, "error": error}, f"line {row + 2}")
    found.add({"row": 30, "error": {"code": "bad_json", "message": "the line is not valid JSON"}})
    first, second = found.to_list()
    assert (found.count, first["count"], len(first["rows"])) == (26, 25, 10)
    assert describe(first).startswith("25 × price: expected a number: line 2 (str '0'), line 3")
    assert describe(first).endswith("line 11 (str '9') and 15 more")
    assert describe(second) == "1 × the line is not valid JSON: row 30"


def test_a_bad_row_is_a_value_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"price": ' + "[" * 100_000 + "\n")
    assert isinstance(rows_of(tmp_path / "rows.jsonl")[0], BadRow)


MONTHS = Contract(
    model="churn",
    task="regression",
    inputs=[InputField(name="months", dtype="float32", nullable=True), InputField(name="BMI", dtype="float32", nullable=True)],
    output="value",
    target="y",
    sample={"months": 1.0, "BMI": 20.0},
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("months\tBMI\n0,125\t4\n0,250\t5\n", [{"months": 0.125, "BMI": 4}, {"months": 0.25, "BMI": 5}]),
        ("BMI;months\n0.125;1,234\n", [{"months": 1234, "BMI": 0.125}]),
        ("ORCID,BMI,months\n0000-1,2,3\n", [{"months": 3, "BMI": 2}]),
    ],
)
def test_small_decimals_are_no_thousands_and_names_of_columns_no_formats(
    tmp_path: Path, text: str, rows: list[dict[str, float]]
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    assert rows_of(tmp_path / "rows.csv", contract=MONTHS) == rows


def test_a_misspelt_optional_field_is_no_gap_in_json_lines_either(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"month": 3, "BMI": 4}\n{"months": 3, "BMI": 4}\n')
    first, second = rows_of(tmp_path / "rows.jsonl", contract=MONTHS)
    assert isinstance(first, BadRow) and "no field 'months', but 'month'" in str(first["message"]) and second["months"] == 3


def test_a_damaged_picture_or_archive_is_no_traceback(tmp_path: Path) -> None:
    raw = bytearray(bz2.compress(b"months,BMI\n" + b"".join(b"%d,%d\n" % (i, i * 7 % 31) for i in range(5000))))
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "rows.csv.bz2").write_bytes(raw)
    with pytest.raises(BadFile, match="truncated or damaged"):
        rows_of(tmp_path / "rows.csv.bz2", contract=MONTHS)

"""Files of true answers: each row once, contradictions named, and values as the model could have given them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.scoring.rows import BadFile
from headrace.scoring.truths import Truths, first_id, read_truths


def contract(output: Any = "value", **fields: Any) -> Contract:
    inputs = [InputField(name="order", dtype="string")]
    return Contract(model="trips", task="t", inputs=inputs, output=output, target="minutes", sample={}, **fields)


LABELS = contract("probabilities", labels=["delayed", "NA", "true"])


def read(path: Path, text: str, of: Contract | None = None, columns: tuple[str, ...] = ("minutes",), **options: Any) -> Truths:
    path = path / "truths.csv"
    path.write_text(text)
    return read_truths(path, of or contract(), columns, **options)


def found(truths: Truths) -> dict[Any, Any]:
    return {key: one.truth for key, one in truths.by_row.items()}


def test_ids_rows_and_truths_are_read_and_empty_truths_are_left_for_later(tmp_path: Path) -> None:
    truths = read(tmp_path, "id;row;minutes\ntrips@3:a;;1,5\ntrips@3:b;2;7\nc;0;\nd;;NaN\n")
    assert found(truths) == {("a", 0): 1.5, ("b", 2): 7}
    assert (truths.rows, truths.missing, truths.refused.count) == (4, 2, 0)
    assert truths.by_row["a", 0].about == "trips@3:a"


def test_the_same_truth_twice_counts_once_and_contradictions_are_named(tmp_path: Path) -> None:
    truths = read(tmp_path, "request_id,minutes\na,1\na,1\nb,1\nb,2\ntrips@3:b,3\nc,4\n")
    assert found(truths) == {("a", 0): 1, ("c", 0): 4} and truths.repeated == 1
    assert truths.contradictory.count == 3
    assert truths.contradictory.first == ["line 5: b: 1 at line 4, 2 here", "line 6: b has several truths"]


def test_the_first_ten_places_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    truths = read(tmp_path, "id,minutes\n" + "".join(f"r{i},long\n" for i in range(25)))
    assert (truths.refused.count, len(truths.refused.first)) == (25, 10)
    assert truths.refused.first[0] == "line 2: minutes: expected a finite number, got str 'long'"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a,-1,5", "row: expected a whole number from 0, got int -1"),
        ("a,1.5,5", "row: expected a whole number from 0"),
        (",0,5", "no value in 'request_id'"),
        ("other@1:a,0,5", "the id is of another model, 'other'"),
        ("a,0,inf", "minutes: expected a finite number"),
    ],
)
def test_a_row_that_is_wrong_has_its_reason(tmp_path: Path, line: str, reason: str) -> None:
    truths = read(tmp_path, f"id,row,minutes\n{line}\nb,1,2\n")
    assert found(truths) == {("b", 1): 2}
    assert truths.refused.count == 1 and reason in truths.refused.first[0]


def test_labels_are_those_of_the_model(tmp_path: Path) -> None:
    truths = read(tmp_path, "id,minutes\na,delayed\nb,NA\nc,True\nd,delay\ne,\n", LABELS)
    assert found(truths) == {("a", 0): "delayed", ("b", 0): "NA", ("c", 0): "true"}
    assert truths.refused.first == ["line 5: unknown label 'delay'; did you mean 'delayed'?"] and truths.missing == 1
    digits = contract("probabilities", labels=[0, 1])
    frame = pd.DataFrame({"id": ["a", "b", "c"], "minutes": [1.0, 0.0, None]})
    frame.to_parquet(tmp_path / "truths.parquet")
    assert found(read_truths(tmp_path / "truths.parquet", digits, ["minutes"])) == {("a", 0): 1, ("b", 0): 0}


def test_several_labels_and_several_values(tmp_path: Path) -> None:
    several = contract("labels", labels=["x", "y"])
    path = tmp_path / "truths.jsonl"
    rows = [{"id": "a", "minutes": ["x", "y"]}, {"id": "b", "minutes": '["x"]'}, {"id": "c", "minutes": "x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    truths = read_truths(path, several, ["minutes"])
    assert found(truths) == {("a", 0): ["x", "y"], ("b", 0): ["x"]} and "expected a list" in truths.refused.first[0]
    values = contract("values", targets=["u", "v"])
    assert found(read(tmp_path, "id,u,v\na,1,2\n", values, ("u", "v"))) == {("a", 0): {"u": 1, "v": 2}}


def test_a_key_column_and_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "truths.csv.gz"
    path.write_bytes(gzip.compress(b"order,late\n007,3\n8,4\n8,5\n"))
    truths = read_truths(path, contract(), ["late"], key="order")
    assert found(truths) == {("007", 0): 3} and truths.contradictory.count == 2


def test_wrong_columns_have_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="'minutes' is missing; did you mean 'minuets'"):
        read(tmp_path, "id,minuets\na,1\n")
    with pytest.raises(BadFile, match="'request_id' is missing"):
        read(tmp_path, "minutes\n1\n")


def test_the_first_id_names_the_model(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,y\ntrips@3:a,1\n")
    assert first_id(tmp_path / "a.csv", contract()) == "trips@3:a"
    (tmp_path / "b.csv").write_text("id,y\n")
    assert first_id(tmp_path / "b.csv", contract()) is None

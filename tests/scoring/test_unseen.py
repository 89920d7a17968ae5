"""Values that training has not seen: beside the answers of a file, and counted by field."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.runtime.input_field import InputField
from headrace.scoring.open_rows import open_rows
from headrace.scoring.rows import JSON_LINES
from headrace.scoring.unseen import UnseenCounts, describe_counts, warnings_by_row
from headrace.services.api.batch_rows import lines_of, write_parquet
from headrace.services.api.batch_store import Part
from tests.scoring.scored import CONTRACT, score

KNOWN = "store: '5' is outside of the training data: known are '3', '17'"
WIDE = CONTRACT.model_copy(
    update={
        "inputs": [
            *(InputField(name=f"x{i}", dtype="float32", lowest=0.0, highest=1.0) for i in range(3)),
            InputField(name="a.b", dtype="string", levels=["in"]),
        ]
    }
)


def test_csv_has_a_column_of_warnings_which_is_empty_without_any(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id,price,store\n1,2,3\n2,2,5\n3,far,5\n")
    found, _, _ = score(tmp_path / "rows.csv")
    table = pd.read_csv(io.BytesIO(found), dtype=str, keep_default_na=False)
    assert list(table)[-1] == "prediction_warnings" and table["prediction_warnings"].tolist() == ["", KNOWN, ""]
    (tmp_path / "rows.csv").write_text("id,price,store\n1,2,3\n")
    assert list(pd.read_csv(io.BytesIO(score(tmp_path / "rows.csv")[0]))) == list(table)


def test_parquet_has_the_column_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, 8], "price": [1.5, 2.5], "store": ["3", "5"]}), tmp_path / "rows.parquet")
    found, lines, _ = score(tmp_path / "rows.parquet")
    table = pq.read_table(io.BytesIO(found))
    assert table["prediction_warnings"].to_pylist() == [None, KNOWN] and table.schema.names[-1] == "prediction_warnings"
    part = tmp_path / "part.jsonl"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_parquet([Part(0, 2, 0, part)], CONTRACT, tmp_path / "result.parquet")
    assert pq.read_table(tmp_path / "result.parquet")["warnings"].to_pylist() == [None, KNOWN]
    assert list(lines_of([Part(0, 2, 0, part)])) == lines


def test_json_lines_have_them_beside_the_answer(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"price": 1, "store": "3"}\n{"price": 1, "store": "5", "prediction_warnings": 1}\n')
    first, second = map(json.loads, score(tmp_path / "rows.jsonl")[0].splitlines())
    assert "prediction_warnings_2" not in first
    assert second["prediction_warnings"] == 1
    assert second["prediction_warnings_2"] == [{"path": "row.store", "message": KNOWN.removeprefix("store: ")}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_answers_alone_have_no_warnings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("price,store\n1,5\n" if name == "rows.csv" else '{"price": 1, "store": "5"}\n')
    found, lines, _ = score(tmp_path / name, "ignore")
    assert b"warnings" not in found and lines[0]["warnings"]


def test_values_are_counted_by_field() -> None:
    counts = UnseenCounts()
    for fields in (["a", "b.c"], [], ["b.c"]):
        warnings = [{"path": f"row.{name}", "message": "?"} for name in fields]
        counts.add({"row": 0, "prediction": {}, **({"warnings": warnings} if warnings else {})})
    counts.add({"row": 3, "error": {"code": "c", "message": "m"}})
    assert counts.to_dict() == {"b.c": 2, "a": 1}
    assert describe_counts(counts.to_dict()) == "values that training has not seen: 2 × b.c, 1 × a"


def test_the_named_ones_are_kept_if_another_version_has_answered() -> None:
    given = [{"path": f"instances.{row}.b", "message": "?"} for row in range(100)]
    found = warnings_by_row(given, CONTRACT, [{"b": 1}] * 100)
    assert found == {row: [{"path": "row.b", "message": "?"}] for row in range(100)}


def test_a_contract_names_as_many_as_it_is_asked_for() -> None:
    feeds = {"x0": np.full(300, 2, np.float32), "x1": np.full(300, 2, np.float32), "x2": np.zeros(300, np.float32)}
    feeds["a.b"] = np.array(["in"] * 300)
    assert [len(WIDE.unseen(feeds, most).values) for most in (100, 7, None)] == [100, 7, 600]


def test_the_result_of_a_batch_of_json_lines_is_its_parts(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"price": 1, "store": "5"}\n')
    assert open_rows(tmp_path / "rows.jsonl", CONTRACT, "refuse").media_type == JSON_LINES
    assert [one["path"] for one in score(tmp_path / "rows.jsonl")[1][0]["warnings"]] == ["row.store"]

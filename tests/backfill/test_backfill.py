"""Past data scored with a version: the answers of a replica, in the format of the data, from any source."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bentos.models.onnx_model import load
from headrace.errors import DataError, UsageError
from headrace.scoring.open_rows import open_rows
from headrace.serving.access import audit
from headrace.tracking.provenance import sha256
from tests.asgi import predict_body
from tests.backfill.released import ROWS, Released
from tests.projects import table


def test_answers_are_those_of_a_replica_beside_the_columns_of_the_data(model: Released, past: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.csv"
    record = model.backfill(past, out)
    scored = pd.read_csv(out)
    assert scored["customer"].tolist() == list(range(1, ROWS + 1))
    assert scored.loc[scored["prediction_error"].notna(), "customer"].tolist() == [500]
    replica = load(model.version.folder)
    rows = [row for chunk in open_rows(past, replica.contract, "ignore").chunks() for row in chunk.values]
    for place in (0, 1, 99, 100, 498, ROWS - 1):
        (alone,) = predict_body(replica, json.dumps({"instances": [rows[place]]}).encode())
        found = scored.loc[place]
        assert found["prediction"] == alone["label"]
        assert {label: found[f"probability_{label}"] for label in alone["probabilities"]} == alone["probabilities"]
    assert scored["prediction_id"].dropna().str.startswith(f"{model.version.name}:backfill-").all()

    assert (record["rows"], record["answered"], record["refused"]) == (ROWS, ROWS - 1, 1)
    assert record["sha256"] == sha256(out) and record["data_sha256"] == sha256(past)
    assert record["refusals"][0]["rows"] == [{"row": 499, "place": "line 501", "got": "str 'many'"}]
    assert json.loads((tmp_path / "scored.csv.backfill.json").read_text()) == record
    assert (entry := audit.entries(model.project)[-1]).act == "backfill" and entry.facts["sha256"] == record["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scored.csv", "scored.csv.backfill.json"]


def test_the_result_does_not_depend_on_workers_or_chunks(model: Released, past: Path, tmp_path: Path) -> None:
    frame = table(ROWS, seed=6)
    parquet = tmp_path / "past.parquet"
    frame.to_parquet(parquet, row_group_size=170)
    for source in (past, parquet):
        found = set()
        for workers, chunk_rows in ((2, 300), (1, 5000)):
            out = tmp_path / f"{workers}-{chunk_rows}{source.suffix}"
            model.backfill(source, out, workers, chunk_rows=chunk_rows)
            found.add(out.read_bytes())
        assert len(found) == 1
    scored = pd.read_parquet(tmp_path / "2-300.parquet")
    assert scored["length"].tolist() == frame["length"].tolist() and scored["prediction_row"].tolist() == list(range(ROWS))


def test_files_of_a_pattern_are_scored_in_order_and_need_the_same_columns(model: Released, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        table(50 * day, seed=day).assign(day=day).to_csv(tmp_path / f"day-{day}.csv", index=False)
    record = model.backfill(tmp_path / "day-*.csv", tmp_path / "scored.csv")
    scored = pd.read_csv(tmp_path / "scored.csv")
    assert scored["day"].tolist() == [1] * 50 + [2] * 100 + [3] * 150 and record["rows"] == 300
    assert scored["prediction_row"].tolist() == list(range(300))
    table(5).to_csv(tmp_path / "day-4.csv", index=False)
    with pytest.raises(DataError, match=r"day-4\.csv: its columns are not those of day-1\.csv"):
        model.backfill(tmp_path / "day-*.csv", tmp_path / "another.csv")


def test_a_partitioned_folder_becomes_a_folder_of_parts_with_its_columns(model: Released, tmp_path: Path) -> None:
    frame = table(240).assign(month=[1, 2, 3] * 80, region=["07", "10"] * 120)
    frame.to_parquet(tmp_path / "months", partition_cols=["region", "month"])
    (tmp_path / "months" / "_SUCCESS").touch()
    out = tmp_path / "scored"
    model.backfill(tmp_path / "months", out, is_folder=True)
    scored = pd.read_parquet(out)
    assert len(list(out.iterdir())) == 6 and len(scored) == 240
    assert scored.groupby(["region", "month"]).size().tolist() == [40] * 6 and set(scored["region"]) == {"07", "10"}
    assert scored["prediction"].notna().all()


def test_rows_of_a_query_become_parquet(model: Released, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as database:
        table(120).to_sql("orders", database, index_label="id")
    source, query = f"sqlite:///{tmp_path / 'shop.db'}", "SELECT * FROM orders WHERE id < 70"
    model.backfill(source, tmp_path / "scored.parquet", query=query)
    assert pd.read_parquet(tmp_path / "scored.parquet")["id"].tolist() == list(range(70))
    with pytest.raises(DataError, match="needs a query or a table") as caught:
        model.backfill(source, tmp_path / "other.parquet")
    assert caught.value.where == "--data" and "--query" in str(caught.value.hint)


def test_json_lines_and_answers_alone(model: Released, tmp_path: Path) -> None:
    table(150).to_json(tmp_path / "past.jsonl", orient="records", lines=True)
    model.backfill(tmp_path / "past.jsonl", tmp_path / "scored.jsonl", answers_only=True)
    lines = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(150))
    assert set(lines[0]) == {"row", "prediction", "prediction_id", "prediction_row"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "7"}, "has no version '7'; known: "),
        ({"version": "champon"}, "did you mean 'champion'"),
        ({"data": "pasd.csv"}, "no such file: .*did you mean 'past.csv'"),
        ({"out": "scored.parquet"}, "the answers to past.csv come as csv, not as scored.parquet"),
        ({"query": "SELECT 1"}, "only a database has a query or a table"),
    ],
)
def test_what_cannot_be_scored(model: Released, past: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    data, out = past.with_name(options.pop("data", "past.csv")), tmp_path / options.pop("out", "scored.csv")
    with pytest.raises((UsageError, DataError), match=message) as caught:
        model.backfill(data, out, **options)
    assert caught.value.hint


def test_a_model_that_was_never_released_and_data_without_rows(model: Released, tmp_path: Path) -> None:
    (tmp_path / "past.csv").write_text("length,width,colour\n")
    with pytest.raises(DataError, match="the data has no rows"):
        model.backfill(tmp_path / "past.csv", tmp_path / "scored.csv")
    other = Released(model.project, model.version.__class__("relase-0", "1", "", Path(), {}))
    with pytest.raises(UsageError, match="'relase-0' was never released; did you mean 'release-"):
        other.backfill(tmp_path / "past.csv", tmp_path / "other.csv")

"""Past data scored with a version: the answers of a replica, the same bytes after any interruption, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bentos.models.onnx_model import load
from headrace.scoring.open_rows import open_rows
from headrace.scoring.rows import BadRow
from tests.asgi import predict_body
from tests.backfill.released import ROWS, Released


def test_answers_are_those_of_a_replica(model: Released, past: Path, tmp_path: Path) -> None:
    out = tmp_path / "scored.csv"
    record = model.backfill(past, out)
    scored = pd.read_csv(out)
    assert (record["rows"], record["refused"], record["version"]) == (ROWS, 1, model.version.version)
    assert scored["customer"].tolist() == list(range(1, ROWS + 1))
    assert scored.loc[scored["prediction_error"].notna(), "customer"].tolist() == [500]
    replica = load(model.version.folder)
    rows = [row for chunk in open_rows(past, replica.contract, "ignore").chunks() for row in chunk.values]
    for place in [0, 1, 7, 99, 100, 498, 1029]:
        (alone,) = predict_body(replica, json.dumps({"instances": [rows[place]]}).encode())
        found = scored.loc[place]
        assert found["prediction"] == alone["label"]
        assert {label: found[f"probability_{label}"] for label in alone["probabilities"]} == alone["probabilities"]
    print(scored.head())

"""Gaps, blanks, and values that no training row had: by rules of the recipe, in files and in the service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml

from bentos.app import PredictionApp
from headrace.client import AsyncClient
from headrace.client.requests import parse_answer
from headrace.data.tables import read_batch
from headrace.recipe.recipe import Recipe, parse_recipe
from headrace.scoring.rows import Line
from headrace.services.api.batch_requests import BatchClient
from tests.bento_projects import make_recipe
from tests.bentos.app_requests import ask
from tests.served_tables import contract_for, predictions, read_table, rows_of, served

RNG = np.random.default_rng(1)
ROWS = 80
HEAD = "plan,spend,country,y"


def table(path: Path, rows: int = ROWS) -> Path:
    plans = RNG.choice(["basic", " pro", "team ", "-", "n.a."], rows, p=[0.4, 0.2, 0.2, 0.1, 0.1])
    spends = [f"{value:.2f}" if RNG.random() > 0.1 else "n.a." for value in RNG.uniform(10, 90, rows)]
    countries = RNG.choice(["NA", "DE"], rows)
    lines = [f"{p},{s},{c},{RNG.choice(['yes ', 'no'])}" for p, s, c in zip(plans, spends, countries, strict=True)]
    path.write_text("\n".join([HEAD, *lines]) + "\n")
    return path


def recipe_with(**serve: Any) -> Recipe:
    recipe = make_recipe(missing=["", "n.a.", "-"], trim=True, times=[])

    fields = {**recipe.model_dump(mode="json", exclude_unset=True), "serve": serve}
    return parse_recipe(yaml.safe_dump(fields), "recipes/toy.yaml")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> PredictionApp:
    folder = tmp_path_factory.mktemp("gaps")
    return served(table(folder / "t.csv"), recipe_with(), folder / "model")


def post(app: PredictionApp, *instances: Any) -> Any:
    return ask(app, "POST", "/v1/models/toy/predict", json={"instances": list(instances)})


def test_the_recipe_says_what_a_gap_is_and_trims_blanks(tmp_path: Path) -> None:
    found = read_table(table(tmp_path / "t.csv"), recipe_with())
    assert set(found["plan"].dropna()) == {"basic", "pro", "team"} and found["plan"].isna().any()
    assert found["spend"].dtype == np.float64 and found["spend"].isna().any()
    assert set(found["country"]) == {"NA", "DE"}  # Namibia is not a gap, as the recipe does not say so
    assert set(found["y"]) == {"yes", "no"}
    plain = read_table(tmp_path / "t.csv", make_recipe())
    assert " pro" in set(plain["plan"]) and plain["country"].isna().any()  # as without rules


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_gaps_and_blanks_are_the_same_in_other_formats(format: str, tmp_path: Path) -> None:
    expected = read_table(table(tmp_path / "t.csv"), recipe_with())
    raw = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    raw = raw.assign(spend=pd.to_numeric(raw["spend"], errors="coerce"))
    path = tmp_path / f"t.{format}"
    raw.to_parquet(path) if format == "parquet" else raw.to_json(path, orient="records", lines=True)
    pd.testing.assert_frame_equal(read_table(path, recipe_with()), expected)


def test_later_batches_have_the_same_gaps(tmp_path: Path) -> None:
    import pyarrow as pa

    first = read_table(table(tmp_path / "t.csv"), recipe_with())
    schema = pa.Table.from_pandas(first, preserve_index=False).schema
    (tmp_path / "later.csv").write_text(f"{HEAD}\n n.a. , 12.5 ,NA,no\n-,-,DE,yes\npro,,DE,no\n")
    later = read_batch(tmp_path / "later.csv", recipe_with().data, schema).table.to_pylist()
    assert [(row["plan"], row["spend"], row["country"]) for row in later] == [
        (None, 12.5, "NA"), (None, None, "DE"), ("pro", None, "DE"),
    ]  # fmt: skip


def test_the_service_reads_gaps_and_blanks_as_ingest_does(app: PredictionApp, tmp_path: Path) -> None:
    row = {"plan": "pro", "spend": 50.0, "country": "NA"}
    same = [
        ({"plan": " pro "}, {}),
        ({"plan": "n.a."}, {"plan": None}),
        ({"plan": " - "}, {"plan": ""}),
        ({"spend": "n.a."}, {"spend": None}),
        ({"spend": ""}, {"spend": None}),
        ({"spend": "50.0"}, {}),
    ]
    for left, right in same:
        answers = predictions(post(app, {**row, **left}, {**row, **right}))
        assert answers[0] == answers[1], left
    assert post(app, {**row, "country": "-"}).status_code == 422  # no training row lacks it
    assert post(app, {**row, "spend": "many"}).status_code == 422
    (tmp_path / "rows.csv").write_text("plan,spend,country\n pro ,50.0,NA\nn.a.,-,NA\n")
    rows = rows_of(tmp_path / "rows.csv", app.model.contract)
    assert predictions(post(app, *rows)) == predictions(post(app, row, {"country": "NA", "plan": None, "spend": None}))


def test_unknown_levels_and_values_outside_of_training_are_warned_of_and_counted(app: PredictionApp) -> None:
    row = {"plan": "pro", "spend": 50.0, "country": "NA"}
    assert "warnings" not in post(app, row).json()
    response = post(app, row, {**row, "plan": "gold", "spend": 5e6}, {**row, "plan": None})
    warnings = response.json()["warnings"]
    assert [one["path"] for one in warnings] == ["instances.1.spend", "instances.1.plan"]
    assert "5000000 is outside of the training data: from 1" in warnings[0]["message"]
    assert "'gold' is outside of the training data: known are 'basic', 'pro', 'team'" in warnings[1]["message"]
    from headrace.client.answers import Prediction

    assert parse_answer(Prediction, response.json()).warnings == warnings
    kinds = {"plan": "BYTES", "spend": "FP32", "country": "BYTES"}
    inputs = [{"name": n, "datatype": k, "shape": [1], "data": [{**row, "plan": "gold"}[n]]} for n, k in kinds.items()]
    head = ask(app, "POST", "/v2/models/toy/infer", json={"inputs": inputs}).json()
    assert head["parameters"]["warnings"].startswith("rows.0.plan: 'gold' is outside")
    metrics = ask(app, "GET", "/metrics").text
    assert 'headrace_unseen_values_total{field="plan",kind="unknown_level",model="toy",version="0"} 2.0' in metrics
    assert 'headrace_unseen_values_total{field="spend",kind="out_of_range",model="toy",version="0"} 1.0' in metrics


def test_a_batch_has_all_of_them_though_an_answer_names_a_hundred(app: PredictionApp) -> None:
    rows: list[Any] = [{"plan": "gold", "spend": 5e6, "country": "NA"} for _ in range(250)]
    rows[70] = {"plan": "pro", "spend": 50.0, "country": "NA"}

    async def answered() -> list[Line]:
        async with AsyncClient("http://test") as client:
            client._http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
            lines, failure = await BatchClient(client, app.model.contract, "batch").answer(rows, 1000)
        assert failure is None
        return lines

    lines = asyncio.run(answered())
    assert [line["row"] for line in lines] == list(range(1000, 1250)) and "warnings" not in lines[70]
    assert {tuple(one["path"] for one in line["warnings"]) for line in lines[:70] + lines[71:]} == {("row.spend", "row.plan")}


def test_many_unseen_values_are_all_counted_and_a_hundred_are_named(app: PredictionApp) -> None:
    row = {"plan": "gold", "spend": 50.0, "country": "NA"}
    found = app.model.contract.unseen(app.model.to_feeds([row] * 500))
    assert len(found.values) == 100 and found.counts == {("plan", "unknown_level"): 500}


def test_a_recipe_may_refuse_what_training_has_not_seen(tmp_path: Path) -> None:
    app = served(table(tmp_path / "t.csv"), recipe_with(unknown="refuse"), tmp_path / "model")
    row = {"plan": "pro", "spend": 50.0, "country": "NA"}
    assert post(app, row, {**row, "plan": None}).status_code == 200
    for field, value in (("plan", "gold"), ("spend", -1e6)):
        response = post(app, row, {**row, field: value})
        assert response.status_code == 422 and response.json()["error"]["path"] == f"instances.1.{field}"
        assert "a value of the training data" in response.json()["error"]["message"]
    kinds = {"plan": "BYTES", "spend": "FP32", "country": "BYTES"}
    inputs = [{"name": n, "datatype": k, "shape": [1], "data": [{**row, "plan": "gold"}[n]]} for n, k in kinds.items()]
    assert ask(app, "POST", "/v2/models/toy/infer", json={"inputs": inputs}).status_code == 422


def test_whether_null_is_taken_does_not_depend_on_the_split(tmp_path: Path) -> None:
    lines = [f"{i},{'x' if i % 2 else 'z'}" for i in range(40)]
    for gap in range(0, 40, 7):
        rows = [("," + line.split(",")[1]) if i == gap else line for i, line in enumerate(lines)]
        (tmp_path / "t.csv").write_text("\n".join(["a,y", *rows]) + "\n")
        (field,) = contract_for(tmp_path / "t.csv", make_recipe()).inputs
        assert field.nullable, gap


def test_a_sample_that_training_has_not_seen_is_moved_to_what_it_has(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv")
    recipe = recipe_with(unknown="refuse")
    contract = contract_for(path, recipe)
    from headrace.task_types.lookup import task_type_of
    from tests.served_tables import learned

    splits, schema = learned(path, recipe)
    odd = splits.test.iloc[:1].assign(plan="gold", spend=1e9)
    found = task_type_of(recipe.task).contract(schema, recipe, odd)
    found.to_feeds([json.loads(json.dumps(found.sample))])
    assert found.sample["plan"] == "basic" and contract.unknown == "refuse"

"""Codes, booleans, categories of numbers and numbers with units: the same by every way of asking, from every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bentos.app import PredictionApp
from headrace.cli.inputs import from_fields
from headrace.client.requests import to_instances
from headrace.data.tables import read_batch
from headrace.errors import DataError, RecipeError
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from tests.bento_projects import make_recipe
from tests.bentos.app_requests import ask
from tests.served_tables import contract_for, predictions, read_table, rows_of, served

ROWS = 60
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "zip": RNG.choice(["01234", "02345", "10115", "00501"], ROWS),
        "member": RNG.choice([True, False], ROWS),
        "store": RNG.choice([3, 17, 204], ROWS),
        "size": RNG.choice([37.5, 38.0, 39.5], ROWS),
        "day": pd.date_range("2024-01-01", periods=ROWS),
        "price": RNG.uniform(1, 2000, ROWS).round(2),
        "y": RNG.choice(["no", "yes"], ROWS),
    }
)
TABLE.loc[0, "price"] = 1234.5
FIELDS = [name for name in TABLE.columns if name != "y"]
RULES: dict[str, Any] = {
    "categorical": ["zip", "store", "size"],
    "times": {"day": {"format": "%d/%m/%Y"}},
    "parse": {"price": {"strip": "$"}},
}
FORMATS = ("csv", "parquet", "jsonl")


def write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
        return path
    dressed = frame.assign(day=frame["day"].dt.strftime("%d/%m/%Y"), price=[f"${value:,.2f}" for value in frame["price"]])
    if path.suffix == ".csv":
        dressed.to_csv(path, index=False)
    else:
        dressed.to_json(path, orient="records", lines=True)
    return path


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return make_recipe(**RULES)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> PredictionApp:
    folder = tmp_path_factory.mktemp("types")
    return served(write(TABLE, folder / "table.csv"), recipe, folder / "model")


def contract_of(app: PredictionApp) -> Contract:
    return app.model.contract


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_table_gives_the_same_model_from_every_format(format: str, tmp_path: Path, recipe: Recipe) -> None:
    contract = contract_for(write(TABLE, tmp_path / f"table.{format}"), recipe)
    fields = {field.name: field for field in contract.inputs}
    assert fields["zip"].levels == ["00501", "01234", "02345", "10115"] and not fields["zip"].takes_numbers
    assert (fields["store"].levels, fields["size"].levels) == (["17", "204", "3"], ["37.5", "38", "39.5"])
    assert fields["member"].boolean and fields["day"].is_time and fields["price"].dtype == "float32"
    assert isinstance(contract.sample["member"], bool) and len(contract.sample["day"]) == 10
    assert contract == contract_for(write(TABLE, tmp_path / "again.csv"), recipe)


def answers_of(app: PredictionApp, instances: Any) -> Any:
    return predictions(ask(app, "POST", "/v1/models/toy/predict", json={"instances": instances}))


def test_every_way_of_asking_gives_the_same_answers(app: PredictionApp, tmp_path: Path) -> None:
    rows = TABLE[FIELDS].iloc[:5]
    contract = contract_of(app)
    expected = answers_of(app, to_instances(rows))  # the training frame itself
    for format in FORMATS:
        path = write(rows, tmp_path / f"rows.{format}")
        assert answers_of(app, rows_of(path, contract)) == expected, format
    assert answers_of(app, to_instances(rows.astype({"store": "Int64", "zip": "category", "member": "boolean"}))) == expected
    first = rows.iloc[0]
    typed = [f"zip={first.zip}", f"member={first.member}", f"store={first.store}", f"size={first['size']}"]
    typed += [f"day={first.day:%d/%m/%Y}", "price=$1,234.50"]
    assert answers_of(app, from_fields(typed, contract)) == expected[:1]
    tensors: dict[str, tuple[str, list[Any]]] = {
        "zip": ("BYTES", rows["zip"].tolist()),
        "member": ("BOOL", rows["member"].tolist()),
        "store": ("INT64", rows["store"].tolist()),
        "size": ("FP64", rows["size"].tolist()),
        "day": ("BYTES", [f"{day:%d/%m/%Y}" for day in rows["day"]]),
        "price": ("FP64", rows["price"].tolist()),
    }
    inputs = [{"name": n, "datatype": kind, "shape": [5], "data": values} for n, (kind, values) in tensors.items()]
    response = ask(app, "POST", "/v2/models/toy/infer", json={"inputs": inputs})
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["data"] == [answer["label"] for answer in expected]
    described = {one["name"]: one["datatype"] for one in ask(app, "GET", "/v2/models/toy").json()["inputs"]}
    assert described["day"] == described["zip"] == "BYTES"


@pytest.mark.parametrize(
    ("field", "values", "others"),
    [
        ("zip", ["01234"], [1234, 1234.0, True, None]),
        ("member", [True, "true", "True", 1, 1.0, "1"], ["yes", 2, 0.5, None, "maybe"]),
        ("store", [17, "17", 17.0, "17.0"], [True, None, 17.5]),
        ("size", [38, 38.0, "38"], [True, None]),
        ("day", ["31/01/2024", "2024-01-31", "2024-01-31T00:00:00"], ["01/31/2024", 1706659200, None, True, ""]),
        ("price", [1234.5, "1234.5", "$1,234.50", "1,234.50 $"], ["1.234,50", "€5", True, None, "", "cheap"]),
    ],
)
def test_values_of_one_meaning_get_one_answer_and_others_are_refused(
    field: str, values: list[Any], others: list[Any], app: PredictionApp
) -> None:
    sample = contract_of(app).sample
    assert len({json.dumps(answers_of(app, [{**sample, field: value}])) for value in values}) == 1
    for value in others:
        response = ask(app, "POST", "/v1/models/toy/predict", json={"instances": [{**sample, field: value}]})
        assert response.status_code == 422, (value, response.text)
        assert response.json()["error"]["path"] == f"instances.0.{field}"


def test_later_batches_are_read_by_the_same_rules(tmp_path: Path, recipe: Recipe) -> None:
    import pyarrow as pa

    first = read_table(write(TABLE, tmp_path / "first.csv"), recipe)
    schema = pa.Table.from_pandas(first, preserve_index=False).schema
    for format in FORMATS:
        later = read_batch(write(TABLE.iloc[7:30], tmp_path / f"later.{format}"), recipe.data, schema).table
        found = later.to_pandas().astype(first.dtypes.to_dict())
        pd.testing.assert_frame_equal(found, first.iloc[7:30].reset_index(drop=True))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["member", "y"])
def test_booleans_are_a_target_too(format: str, name: str, tmp_path: Path) -> None:
    table = TABLE.rename(columns={"member": "y", "y": "member"})[["price", "y"]]
    if format == "parquet":
        table.to_parquet(tmp_path / "t.parquet")
    elif format == "csv":
        table.to_csv(tmp_path / "t.csv", index=False)
    else:
        table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert contract_for(tmp_path / f"t.{format}", make_recipe()).labels == ["false", "true"]


def test_codes_stay_text_and_plain_numbers_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('code,quoted,n,zero,half,y\n007,"01",10,0,0.5,a\n12,"",0,0,00.5,b\n300,"2",-3,0,1,a\n')
    found = read_table(path, make_recipe())
    assert found["code"].tolist() == ["007", "12", "300"] and found["quoted"].tolist()[::2] == ["01", "2"]
    assert [str(found[name].dtype) for name in ("n", "zero", "half")] == ["int64", "int64", "float64"]
    numbers = read_table(path, make_recipe(parse={"code": "number"}))
    assert numbers["code"].tolist() == [7.0, 12.0, 300.0]
    assert read_table(path, make_recipe(parse={"n": "text"}))["n"].tolist() == ["10", "0", "-3"]


def test_whole_numbers_that_floats_would_round_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,n,y\n9223372036854775807,1,a\n9223372036854775808,2,b\n,3,a\n")
    found = read_table(path, make_recipe(drop_duplicates=["id"]))
    assert found["id"].tolist()[:2] == ["9223372036854775807", "9223372036854775808"]
    pd.DataFrame({"id": pd.array([2**53, 2**53 + 1, None], "Int64"), "y": ["a", "b", "a"]}).to_parquet(tmp_path / "t.parquet")
    exact = read_table(tmp_path / "t.parquet", make_recipe(drop_duplicates=["id"], categorical=["id"]))
    assert exact["id"].tolist()[:2] == [2**53, 2**53 + 1]
    from headrace.data.splits import positions

    apart = pd.DataFrame({"id": [2**53, 2**53 + 1, 2**53 + 2, -(2**53) - 1]})
    assert len(set(positions(apart, 7))) == 4
    with_gap = pd.DataFrame({"id": pd.array([2**53 + 1, None], "Int64")})
    assert positions(with_gap, 7)[0] == positions(apart.iloc[[1]], 7)[0]


def test_values_that_do_not_fit_a_rule_are_listed_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('price,y\n"$1,234.50",a\nfree,b\n$2,a\n"1.234,50",b\n')
    with pytest.raises(DataError, match=r"2 values of column 'price'.*data row 2: 'free', data row 4: '1\.234,50'") as caught:
        read_table(path, make_recipe(parse={"price": {"strip": "$"}}))
    assert caught.value.hint and "data.parse.price" in caught.value.hint


ODD_NAMES = [
    "label",
    "probabilities",
    "row",
    "id",
    "error",
    "answer",
    "inputs",
    "part",
    "stream",
    "a=b",
    "a b",
    "predictions",
    "é.0",
]


def test_columns_named_like_words_of_the_protocols_work_by_every_way_of_asking(tmp_path: Path) -> None:
    frame = pd.DataFrame({name: RNG.normal(size=40) for name in ODD_NAMES}).assign(y=RNG.choice(["a", "b"], 40))
    frame["inputs"] = RNG.choice(["x", "z"], 40)
    frame.to_csv(tmp_path / "t.csv", index=False)
    app = served(tmp_path / "t.csv", make_recipe(), tmp_path / "model")
    row = json.loads(frame[ODD_NAMES].iloc[[0]].to_json(orient="records"))[0]
    expected = answers_of(app, [row])
    assert predictions(ask(app, "POST", "/v1/models/toy/predict", json=row)) == expected
    assert answers_of(app, from_fields([f"{name}={value}" for name, value in row.items()], contract_of(app))) == expected
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES" if name == "inputs" else "FP64", "data": [value]}
        for name, value in row.items()
    ]
    response = ask(app, "POST", "/v2/models/toy/infer", json={"inputs": tensors})
    assert response.json()["outputs"][0]["data"] == [expected[0]["label"]]
    explained = ask(app, "POST", "/v1/models/toy/explain", json={"instance": row, "evaluations": 40})
    assert explained.status_code == 200 and set(explained.json()["attributions"]) == set(ODD_NAMES)


@pytest.mark.parametrize("name", ["instances", ""])
def test_names_that_cannot_work_are_refused_before_training(name: str, tmp_path: Path) -> None:
    pd.DataFrame({name: [1.0, 2.0] * 20, "b": range(40), "y": ["a", "b"] * 20}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="no feature can be named") as caught:
        contract_for(tmp_path / "t.csv", make_recipe())
    assert caught.value.hint and "data.rename" in caught.value.hint
    with pytest.raises(RecipeError, match="no feature can be named"):
        make_recipe(columns=[name, "b", "y"])
    contract_for(tmp_path / "t.csv", make_recipe(rename={name: "a"}))

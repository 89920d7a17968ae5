"""The exported graph: the network's answers, for any number of rows and any names of columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import numpy_helper

from bentos.models.onnx_model import OnnxModel as Served
from headrace.errors import ExportError
from headrace.models.onnx_export import export_graph, save_graph
from headrace.models.onnx_inference import run_graph
from headrace.models.parity import check_parity
from headrace.models.schema import Schema
from headrace.models.served import ServedModel
from headrace.recipe.recipe import Recipe
from headrace.runtime.contract import Contract
from headrace.task_types.lookup import task_type_of
from tests.bento_projects import fitted, make_model, make_recipe
from tests.exhaustive import exhaustive

pytestmark = pytest.mark.usefixtures("one_thread")


class Exported:
    """A model with random weights, its graph in `folder`, and the frame it was made for."""

    def __init__(self, frame: pd.DataFrame, recipe: Recipe, folder: Path) -> None:
        self.frame, self.recipe, self.folder = frame, recipe, folder
        self.task_type = task_type_of(recipe.task)
        self.schema: Schema = fitted(frame, recipe)
        self.model: ServedModel = make_model(recipe, self.schema)
        self.contract: Contract = self.task_type.contract(self.schema, recipe, frame.iloc[:1])
        folder.mkdir(parents=True, exist_ok=True)
        graph = export_graph(self.model, self.inputs(frame.iloc[:2]), self.task_type.dynamic)
        self.graph = self.task_type.complete(graph, self.schema)
        self.path = folder / "model.onnx"
        save_graph(self.graph, self.path)
        self.contract.write(folder / "contract.json")

    def inputs(self, frame: pd.DataFrame) -> dict[str, torch.Tensor]:
        arrays = self.task_type.encode(frame, self.schema, self.recipe)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def torch_answers(self, frame: pd.DataFrame) -> Any:
        with torch.inference_mode():
            return self.model(*self.inputs(frame).values()).numpy()

    def graph_answers(self, frame: pd.DataFrame) -> Any:
        return run_graph(self.path, self.task_type.feeds(frame, self.contract, self.recipe))

    def assert_agrees(self, frame: pd.DataFrame) -> None:
        wanted, got = self.torch_answers(frame), self.graph_answers(frame)
        assert got.shape == wanted.shape and np.isfinite(got).all()
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def mixed(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(5, 2, rows),
            "colour": rng.choice(["red", "green", "blue"], rows),
            "wind": rng.normal(0, 1, rows),
            "month": rng.integers(1, 13, rows),
            "y": rng.choice(["no", "yes"], rows),
        }
    )
    frame.loc[rows // 2, ["wind", "colour"]] = [np.nan, None]
    return frame


def images(rows: int, height: int, width: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.integers(0, 256, (rows, height * width), dtype=np.uint8)).add_prefix("p")
    return frame.assign(y=rng.integers(0, 3, rows))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    recipe = make_recipe(model={"name": "mlp", "hidden": [16, 8]}, categorical=["colour", "month"])
    return Exported(mixed(60), recipe, tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    recipe = make_recipe("regression", {"name": "mlp", "hidden": [16]}, categorical=["colour", "month"])
    frame = mixed(60).assign(y=np.random.default_rng(1).normal(1000, 300, 60))
    return Exported(frame, recipe, tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Of odd size, so that pooling keeps borders."""
    recipe = make_recipe("image-classification", {"name": "cnn", "channels": [4, 3]}, image=[5, 7])
    return Exported(images(40, 5, 7), recipe, tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_table_is_answered_as_by_torch(table: Exported, rows: int) -> None:
    table.assert_agrees(mixed(rows, seed=rows))
    assert table.graph_answers(mixed(rows)).shape == (rows, 2)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_value_is_answered_as_by_torch(values: Exported, rows: int) -> None:
    values.assert_agrees(mixed(rows, seed=rows))
    assert values.graph_answers(mixed(rows)).shape == (rows,)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_an_image_is_answered_as_by_torch(pictures: Exported, rows: int) -> None:
    pictures.assert_agrees(images(rows, 5, 7, seed=rows))
    assert pictures.graph_answers(images(rows, 5, 7)).shape == (rows, 3)


def test_images_all_black_and_all_white_are_answered(pictures: Exported) -> None:
    frame = images(2, 5, 7)
    frame.iloc[0, :35], frame.iloc[1, :35] = 0, 255
    pictures.assert_agrees(frame)


def test_numbers_at_the_edge_of_their_range_are_answered(table: Exported) -> None:
    frame = mixed(6)
    frame["size"] = [0.0, -0.0, 1e-38, -1e6, 1e6, 3e38]
    table.assert_agrees(frame.iloc[:5])
    with np.errstate(over="ignore"):  # what overflows float32 inside does so in both
        np.testing.assert_array_equal(np.isfinite(table.graph_answers(frame)), np.isfinite(table.torch_answers(frame)))


def test_missing_and_unknown_values_are_answered(table: Exported) -> None:
    frame = mixed(4).assign(colour=["red", None, "purple", ""], month=[1, 99, 12, -1], size=[1.0, np.nan, np.nan, 2.0])
    table.assert_agrees(frame)
    unknown = mixed(3).assign(colour=["purple", None, ""], size=5.0, wind=0.0, month=1)
    answers = table.graph_answers(unknown)
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_a_missing_number_is_answered_as_the_training_mean(table: Exported) -> None:
    mean = next(c.mean for c in table.schema.numeric if c.name == "wind")
    absent, present = mixed(3).assign(wind=np.nan), mixed(3).assign(wind=mean)
    np.testing.assert_allclose(table.graph_answers(absent), table.graph_answers(present), rtol=1e-5)


def test_a_row_gets_the_same_answer_alone_and_in_a_batch(table: Exported) -> None:
    frame = mixed(9)
    alone = np.concatenate([table.graph_answers(frame.iloc[[i]]) for i in range(9)])
    np.testing.assert_allclose(table.graph_answers(frame), alone, rtol=1e-5)


def test_rows_beyond_one_batch_keep_their_order(table: Exported) -> None:
    frame = mixed(9)
    feeds = table.task_type.feeds(frame, table.contract, table.recipe)
    np.testing.assert_allclose(run_graph(table.path, feeds, batch=4), run_graph(table.path, feeds), rtol=1e-6)


def test_fresh_rows_reach_the_edges_of_what_clients_may_send(table: Exported, pictures: Exported) -> None:
    """The rows that parity is measured on: gaps, levels known and unknown, numbers far out; images black and white."""
    rng = np.random.default_rng(0)
    fresh = table.task_type.synthetic_rows(table.schema, table.recipe, 400, rng)
    assert fresh is not None
    assert fresh["wind"].isna().any() and not fresh["size"].isna().any()
    assert set(fresh["colour"]) >= {"red", "green", "blue", ""} and len(set(fresh["colour"])) == 5
    assert fresh["size"].abs().max() == 1e30
    table.assert_agrees(fresh)
    images_only = pictures.task_type.synthetic_rows(pictures.schema, pictures.recipe, 33, rng)
    assert images_only is not None and {0, 255} <= {v for row in images_only.to_numpy() if len(set(row)) == 1 for v in row}
    pictures.assert_agrees(images_only)
    alone = pictures.task_type.synthetic_rows(pictures.schema, pictures.recipe, 1, rng)
    assert alone is not None and len(alone) == 1


def test_parity_fails_where_test_rows_alone_would_not_show_it(tmp_path: Path) -> None:
    """A graph that is wrong for levels that no test row has."""
    frame = mixed(40).assign(colour=["red"] * 39 + ["blue"])
    made = Exported(frame, make_recipe(model={"name": "mlp", "hidden": [16]}, categorical=["colour", "month"]), tmp_path)
    graph = onnx.load(made.path)
    encoder = next(node for node in graph.graph.node if node.op_type == "LabelEncoder" and node.input[0] == "colour")
    next(a for a in encoder.attribute if a.name == "default_int64").i = 1
    onnx.save(graph, tmp_path / "model.onnx")
    made.assert_agrees(frame.iloc[:33])
    with pytest.raises(ExportError, match="differs from torch"):
        parity(made, tmp_path / "model.onnx")


def test_doubles_beside_floats_are_answered_as_by_torch(tmp_path: Path) -> None:
    day = 1_700_000_000 + np.random.default_rng(0).permutation(np.arange(0, 86_400, 1_440))
    frame = mixed(60).assign(moment=day)[["size", "moment", "colour", "wind", "y"]]
    made = Exported(frame, make_recipe(model={"name": "mlp", "hidden": [16]}), tmp_path)
    for rows in (1, 33, 60):
        made.assert_agrees(frame.iloc[:rows])
    later = frame.assign(moment=frame["moment"] + 7)  # less than float32 can tell at this height
    assert not np.array_equal(made.graph_answers(frame), made.graph_answers(later))
    made.assert_agrees(later)
    assert Served(tmp_path).predict([made.contract.sample])


def test_a_value_with_its_interval_is_answered_as_by_torch(tmp_path: Path) -> None:
    recipe = make_recipe("regression", {"name": "mlp", "hidden": [16], "interval": 0.9}, categorical=["colour", "month"])
    made = Exported(mixed(60).assign(y=np.random.default_rng(1).normal(1000, 300, 60)), recipe, tmp_path)
    for rows in (1, 33):
        made.assert_agrees(mixed(rows, seed=rows))
    assert made.graph_answers(mixed(5)).shape == (5, 3)
    (answer,) = Served(tmp_path).predict([made.contract.sample])
    assert answer["interval"][0] <= answer["y"] <= answer["interval"][1]
    assert parity(made, made.path)["largest_relative_difference"] <= 1e-5


def test_quantiles_are_answered_as_by_torch(tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [16], "quantiles": [0.1, 0.25, 0.5, 0.9]}
    recipe = make_recipe("regression", model, categorical=["colour", "month"])
    made = Exported(mixed(60).assign(y=np.random.default_rng(1).normal(1000, 300, 60)), recipe, tmp_path)
    for rows in (1, 33):
        made.assert_agrees(mixed(rows, seed=rows))
    assert made.graph_answers(mixed(5)).shape == (5, 5)
    (answer,) = Served(tmp_path).predict([made.contract.sample])
    found = list(answer["quantiles"].values())
    assert found == sorted(found) and answer["y"] == answer["quantiles"]["0.5"]


def test_a_temperature_is_part_of_the_graph(tmp_path: Path) -> None:
    frame, recipe = mixed(60), make_recipe(model={"name": "mlp", "hidden": [16]}, categorical=["colour", "month"])
    plain = Exported(frame, recipe, tmp_path / "plain")
    plain.model.temperature.fill_(2.5)  # type: ignore[operator]
    path = tmp_path / "scaled.onnx"
    save_graph(plain.task_type.complete(export_graph(plain.model, plain.inputs(frame.iloc[:2]), {}), plain.schema), path)
    scaled = run_graph(path, plain.task_type.feeds(frame, plain.contract, recipe))
    powers = plain.graph_answers(frame) ** (1 / 2.5)
    np.testing.assert_allclose(scaled, powers / powers.sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        {"name": "cnn", "channels": [4, 3], "convolutions": 2, "batch_norm": True, "dropout2d": 0.2, "pooling": "average"},
        {"name": "mlp", "hidden": [8, 8]},
    ],
    ids=["normed and averaged", "dense"],
)
def test_every_network_for_images_is_answered_as_by_torch(model: dict[str, Any], tmp_path: Path) -> None:
    made = Exported(images(40, 5, 7), make_recipe("image-classification", model, image=[5, 7]), tmp_path)
    for rows in (1, 33):
        made.assert_agrees(images(rows, 5, 7, seed=rows))


def test_the_service_gives_the_answers_of_torch(table: Exported) -> None:
    """From JSON rows through contract and graph: the label and probabilities that torch gives for the row in the table."""
    frame = mixed(5, seed=9)
    served, rows = Served(table.folder), []
    for row in frame.to_dict("records"):
        sent = {name: None if row[name] is None or row[name] != row[name] else row[name] for name in ("size", "wind", "colour")}
        rows.append({**sent, "month": str(row["month"])})
    for answer, wanted in zip(served.predict(rows), table.torch_answers(frame), strict=True):
        assert answer["label"] == ["no", "yes"][wanted.argmax()]
        assert list(answer["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-5)


AWKWARD = [
    ["answer", "numeric", "categorical", "rows"],
    exhaustive(["columns/x", "columns/axis", "columns/numeric", "columns/index_0"]),
    ["network/numeric", "network/answer", "network/categorical", "columns/categorical_0"],
    ["a b", "ß 漢字", "q\"uo'te", "do.t/s[0]"],
]


@pytest.mark.parametrize("names", AWKWARD, ids=["like inputs", "like columns", "like the network", "odd letters"])
def test_columns_may_be_called_anything(names: list[str], tmp_path: Path) -> None:
    base = mixed(20).rename(columns=dict(zip(["size", "colour", "wind", "month"], names, strict=True)))
    found = Exported(base, make_recipe(categorical=[names[1], names[3]], model={"name": "mlp", "hidden": [4]}), tmp_path)
    found.assert_agrees(base)
    assert sorted(i.name for i in found.graph.graph.input) == sorted(names)
    Served(tmp_path).predict([found.contract.sample])


@pytest.mark.parametrize("columns", [["size", "wind"], ["colour"]], ids=["numbers alone", "categories alone"])
def test_tables_of_one_sort_of_column(columns: list[str], tmp_path: Path) -> None:
    frame = mixed(20)[[*columns, "y"]]
    found = Exported(frame, make_recipe(model={"name": "mlp", "hidden": [4]}), tmp_path)
    for rows in (1, 2, 20):
        found.assert_agrees(frame.iloc[:rows])


@pytest.mark.parametrize("size", [exhaustive((1, 1)), (1, 9), exhaustive((4, 4))])
def test_images_of_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    recipe = make_recipe("image-classification", {"name": "cnn", "channels": [2, 2]}, image=list(size))
    found = Exported(images(9, *size), recipe, tmp_path)
    for rows in (1, 9):
        found.assert_agrees(images(rows, *size, seed=5))


def test_the_same_weights_give_the_same_bytes(table: Exported, pictures: Exported, tmp_path: Path) -> None:
    for made in (table, pictures):
        again = Exported(made.frame, made.recipe, tmp_path / made.recipe.task)
        assert again.path.read_bytes() == made.path.read_bytes()


@pytest.mark.parametrize("name", ["table", "values", "pictures"])
def test_the_graph_is_one_valid_file_that_names_no_place(name: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(name)
    onnx.checker.check_model(str(made.path), full_check=True)
    loaded = onnx.load(made.path, load_external_data=False)
    assert not any(tensor.external_data for tensor in loaded.graph.initializer)
    assert [p.name for p in made.folder.iterdir() if p.suffix not in (".onnx", ".json")] == []
    content = made.path.read_bytes()
    for trace in (
        b".py",
        b"/headrace",
        b"site-packages",
        str(Path.cwd()).encode(),
        str(Path.home()).encode() + b"/",
        b"Traceback",
    ):
        assert trace not in content, trace


def test_inputs_are_the_contracts(table: Exported, pictures: Exported) -> None:
    for made in (table, pictures):
        assert [i.name for i in made.graph.graph.input] == [field.name for field in made.contract.inputs]
        assert all(not i.type.tensor_type.shape.dim[0].HasField("dim_value") for i in made.graph.graph.input)


def parity(made: Exported, path: Path) -> dict[str, float]:
    batches = made.task_type.parity_batches(made.frame, made.schema, made.recipe, made.contract)
    return check_parity(made.model, path, batches, made.recipe.name)


@pytest.mark.parametrize("name", ["table", "values", "pictures"])
def test_parity_is_measured(name: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(name)
    found = parity(made, made.path)
    assert 0 <= found["largest_relative_difference"] <= 1e-5 < found["tolerance"]


@pytest.mark.parametrize("name", ["table", "values", "pictures"])
@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_graph_that_disagrees_is_refused(name: str, wrong: float, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: Exported = request.getfixturevalue(name)
    graph = onnx.load(made.path)
    last = next(t for t in reversed(graph.graph.initializer) if t.name.endswith("bias") and "network" in t.name)
    bias = numpy_helper.to_array(last).copy()
    bias[0] += wrong
    last.CopyFrom(numpy_helper.from_array(bias, last.name))
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="differs from torch by"):
        parity(made, tmp_path / "model.onnx")


def test_a_test_set_of_one_row_is_enough(table: Exported) -> None:
    one = table.frame.iloc[[7]].reset_index(drop=True)
    graph = table.task_type.complete(
        export_graph(table.model, table.inputs(one.iloc[[0, -1]]), table.task_type.dynamic), table.schema
    )
    assert graph.SerializeToString(deterministic=True) == table.graph.SerializeToString(deterministic=True)

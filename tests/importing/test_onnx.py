"""ONNX files: what the graph says becomes the contract, the rest is asked for, and what cannot be served is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bentos.models.onnx_model import OnnxModel
from headrace.importing import onnx_file
from headrace.importing.errors import ImportIncomplete, ImportRefused
from tests.importing.made import LABELS, NAMES, built, network, probabilities, rows, write_external, write_network

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def answers(folder: Path, instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a replica answers."""
    return OnnxModel(folder / "export").predict(instances)


def test_a_graph_that_says_everything_needs_nothing_else(tmp_path: Path) -> None:
    labels = {"labels": json.dumps(LABELS), "license": "MIT"}
    found = built(write_network(tmp_path / "m.onnx", **probabilities(), metadata=labels), "classification")
    (field,) = found.contract.inputs
    assert (field.name, field.dtype, field.shape) == ("x", "float32", (4,))
    assert found.contract.labels == LABELS and found.contract.output == "probabilities"
    assert found.facts["licence"] == "MIT" and found.facts["opset"] == 17 and found.facts["bytes"] > 0
    (answer,) = answers(tmp_path, [{"x": [1.0, 0.0, 0.0, 0.0]}])
    weights = np.random.default_rng(5).normal(0, 1, (4, 3)).astype(np.float32)[0]
    expected = np.exp(weights) / np.exp(weights).sum()
    assert answer["probabilities"] == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-5)


@pytest.mark.parametrize("zipmap", [True, False])
def test_graphs_of_skl2onnx_say_task_and_labels_with_and_without_zipmap(tmp_path: Path, zipmap: bool) -> None:
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    frame, labels = rows()
    model = LogisticRegression().fit(frame.to_numpy(), labels)
    graph = to_onnx(model, frame.to_numpy()[:1].astype(np.float32), options={"zipmap": zipmap})
    (tmp_path / "m.onnx").write_bytes(graph.SerializeToString())
    found = built(tmp_path / "m.onnx", inputs=NAMES)
    assert found.contract.task == "classification" and found.contract.labels == LABELS
    assert [(one.name, one.shape) for one in found.contract.inputs] == [(name, ()) for name in NAMES]
    instance = dict(zip(NAMES, [0.5, 0.25, -1.0], strict=True))
    expected = model.predict_proba(np.array([list(instance.values())]))[0]
    assert list(answers(tmp_path, [instance])[0]["probabilities"].values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({}, {"labels": "NAME0,NAME1,NAME2"}),
        ({"labels": LABELS}, {"activation": "softmax"}),
    ],
)
def test_what_a_graph_does_not_say_is_named(tmp_path: Path, fields: dict[str, Any], missing: dict[str, str]) -> None:
    with pytest.raises(ImportIncomplete) as caught:
        built(write_network(tmp_path / "m.onnx"), "classification", **fields)
    assert caught.value.options == missing and "'logits'" in str(caught.value)


def test_the_task_is_asked_for_where_nothing_says_it(tmp_path: Path) -> None:
    with pytest.raises(ImportIncomplete, match="does not say whether") as caught:
        built(write_network(tmp_path / "m.onnx"))
    assert caught.value.options == {"task": "classification"}


def test_many_labels_are_asked_for_as_a_file(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, 12, dtype=np.float32)}
    path = write_network(tmp_path / "m.onnx", outputs=[("logits", FLOAT, ["n", 12])], weights=weights)
    with pytest.raises(ImportIncomplete, match="12 labels") as caught:
        built(path, "classification")
    assert caught.value.options == {"labels": "FILE"}


def test_open_sizes_are_asked_for_and_fixed_ones_are_kept(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    inputs = [("image", FLOAT, ["n", 3, "height", "width"])]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, inputs=inputs, weights={})
    logits = {"labels": LABELS, "activation": "softmax"}
    with pytest.raises(ImportIncomplete, match=re.escape("[3, ?, ?]")) as caught:
        built(path, "classification", **logits)
    assert caught.value.options == {"shapes": "image=3,SIZE,SIZE"}
    assert "`shapes: {image: [3,SIZE,SIZE]}`" in str(caught.value)
    assert built(path, "classification", shapes={"image": [3, 8, 8]}, **logits).contract.inputs[0].shape == (3, 8, 8)
    with pytest.raises(ImportRefused, match="not \\[4, 8, 8\\]"):
        built(path, "classification", shapes={"image": [4, 8, 8]}, **logits)
    with pytest.raises(ImportRefused, match="did you mean 'image'"):
        built(path, "classification", shapes={"imge": [3, 8, 8]}, **logits)


def test_one_probability_becomes_two_classes(tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 1), np.float32)}
    path = write_network(tmp_path / "m.onnx", outputs=[("logits", FLOAT, ["n", 1])], weights=weights)
    found = built(path, "classification", labels=["no", "yes"], activation="sigmoid")
    assert found.contract.labels == ["no", "yes"]
    (answer,) = answers(tmp_path, [{"x": [2.0, 0.0, 0.0, 0.0]}])
    assert answer["label"] == "yes" and answer["probabilities"]["yes"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-5)
    with pytest.raises(ImportRefused, match="softmax needs a column for each"):
        built(path, "classification", labels=["no", "yes"], activation="softmax")


def test_several_labels_per_row_and_values_are_served(tmp_path: Path) -> None:
    path = write_network(tmp_path / "m.onnx")
    built(path, "multilabel-classification", labels=LABELS, activation="sigmoid")
    (answer,) = answers(tmp_path, [{"x": [9.0, 0.0, 0.0, 0.0]}])
    assert set(answer) == {"labels", "probabilities"}
    built(path, "regression", targets=["a", "b", "c"])
    assert set(answers(tmp_path, [{"x": [1.0, 2.0, 3.0, 4.0]}])[0]) == {"a", "b", "c"}
    with pytest.raises(ImportIncomplete, match=r"has 3 columns, and model.targets names prediction") as caught:
        built(path, "regression")
    assert caught.value.options == {"targets": "NAME0,NAME1,NAME2"}


def test_types_that_json_does_not_have_are_converted_in_the_graph(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["count"], ["a"], to=FLOAT),
        helper.make_node("Cast", ["flag"], ["b"], to=FLOAT),
        helper.make_node("Cast", ["half"], ["c"], to=FLOAT),
        helper.make_node("Sum", ["a", "b", "c"], ["total"]),
    ]
    inputs = [
        ("count", TensorProto.INT32, ["n", 1]),
        ("flag", TensorProto.BOOL, ["n", 1]),
        ("half", TensorProto.FLOAT16, ["n", 1]),
    ]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, inputs=inputs, outputs=[("total", FLOAT, ["n", 1])], weights={})
    found = built(path, "regression", targets=["total"])
    assert [(one.name, one.dtype, one.boolean) for one in found.contract.inputs] == [
        ("count", "int64", False),
        ("flag", "int64", True),
        ("half", "float32", False),
    ]
    assert answers(tmp_path, [{"count": 2, "flag": True, "half": 0.5}]) == [{"total": 3.5}]


def test_a_column_may_have_the_name_of_a_value_of_the_graph(tmp_path: Path) -> None:
    built(write_network(tmp_path / "m.onnx"), "regression", targets=["a", "b", "c"], inputs=["w", "logits", "answer", "x"])
    assert set(answers(tmp_path, [{"w": 1.0, "logits": 2.0, "answer": 0.0, "x": 1.0}])[0]) == {"a", "b", "c"}


def test_the_wrong_number_of_names_is_refused(tmp_path: Path) -> None:
    path = write_network(tmp_path / "m.onnx", **probabilities())
    with pytest.raises(ImportRefused, match="2 names are given, and the input 'x' has 4 columns"):
        built(path, "classification", labels=LABELS, inputs=["a", "b"])
    with pytest.raises(ImportRefused, match="2 labels are given"):
        built(path, "classification", labels=["a", "b"])
    with pytest.raises(ImportRefused, match="a name is listed twice"):
        built(path, "classification", labels=LABELS, inputs=["a", "b", "c", "a"])


def test_several_outputs_are_asked_for_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["one"]), helper.make_node("Neg", ["one"], ["two"])]
    outputs = [("one", FLOAT, ["n", 3]), ("two", FLOAT, ["n", 3])]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, outputs=outputs)
    with pytest.raises(ImportIncomplete, match="2 outputs that could be meant") as caught:
        built(path, "regression", targets=["a", "b", "c"])
    assert caught.value.options == {"output": "one"}
    assert built(path, "regression", targets=["a", "b", "c"], output="two").facts["output"] == "two"
    with pytest.raises(ImportRefused, match="no output 'tow'; did you mean 'two'"):
        built(path, "regression", targets=["a", "b", "c"], output="tow")


def test_an_output_without_rows_is_not_served(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)]
    outputs = [("total", FLOAT, []), ("y", FLOAT, ["n", 3])]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, outputs=outputs)
    assert built(path, "regression", targets=["a", "b", "c"]).facts["output"] == "y"


def test_a_graph_for_one_row_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    weights = {"shape": np.array([1, 4], np.int64), "w": np.ones((4, 3), np.float32)}
    inputs, outputs = [("x", FLOAT, [1, 4])], [("logits", FLOAT, [1, 3])]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, inputs=inputs, outputs=outputs, weights=weights)
    with pytest.raises(ImportRefused, match="exactly 1 row"):
        built(path, "regression", targets=["a", "b", "c"])
    free = write_network(tmp_path / "free.onnx", inputs=inputs, outputs=outputs)
    built(free, "regression", targets=["a", "b", "c"])
    assert len(answers(tmp_path, [{"x": [1.0, 2.0, 3.0, 4.0]}] * 3)) == 3, "fixed in its declaration alone"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"not a graph at all", "not a complete ONNX file"),
        (network().SerializeToString()[:60], "not a complete ONNX file"),
        (onnx.ModelProto().SerializeToString() or b"\x08\x08", "not a complete ONNX file"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ImportRefused, match=message):
        built(tmp_path / "m.onnx", "regression")
    assert not (tmp_path / "export").exists()


def test_operators_and_opsets_that_the_runtime_lacks_are_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Whirl", ["x"], ["y"], domain="com.acme"), helper.make_node("Relu", ["y"], ["logits"])]
    path = write_network(tmp_path / "m.onnx", nodes=nodes)
    with pytest.raises(ImportRefused, match=r"com\.acme::Whirl"):
        built(path, "regression")
    with pytest.raises(ImportRefused, match="opset 6, which is older"):
        built(write_network(tmp_path / "old.onnx", opset=6), "regression")
    with pytest.raises(ImportRefused, match="opset 99, which is newer"):
        built(write_network(tmp_path / "new.onnx", opset=99), "regression")


def test_a_sample_without_a_finite_answer_is_refused_until_one_is_given(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    path = write_network(
        tmp_path / "m.onnx", nodes=nodes, inputs=[("x", FLOAT, ["n", 1])], outputs=[("y", FLOAT, ["n", 1])], weights={}
    )
    with pytest.raises(ImportRefused, match="NaN or infinity") as caught:
        built(path, "regression")
    assert "--sample" in str(caught.value)
    assert built(path, "regression", sample={"x": 1.0}).contract.sample == {"x": 1.0}
    with pytest.raises(ImportRefused, match="the sample is not a valid instance"):
        built(path, "regression", sample={"y": 1.0})


def test_weights_in_a_file_beside_the_graph_become_part_of_it(tmp_path: Path) -> None:
    found = built(write_external(tmp_path / "m.onnx"), "regression", targets=["a", "b", "c"])
    graph = onnx.load(tmp_path / "export" / "model.onnx", load_external_data=False)
    assert onnx_file.external_files(graph, "m.onnx") == []
    assert found.facts["bytes"] > (tmp_path / "m.onnx").stat().st_size
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.bin").read_bytes()[:-8])
    with pytest.raises(ImportRefused, match="is truncated"):
        built(tmp_path / "m.onnx", "regression", targets=["a", "b", "c"])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ImportRefused, match="is missing"):
        built(tmp_path / "m.onnx", "regression", targets=["a", "b", "c"])


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "a/../../weights.bin", "C:\\w.bin", "..\\w.bin", ""])
def test_weights_outside_of_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(ImportRefused, match="weights have to be in the graph's folder"):
        built(write_external(tmp_path / "m.onnx", location), "regression")


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded() -> None:
    with pytest.raises(ImportRefused, match=r"800\.0 MB of weights.*about 1,600\.0 MB, and 1,000\.0 MB of memory are free"):
        onnx_file.require_memory(800_000_000, 1_000_000_000, "m.onnx")
    with pytest.raises(ImportRefused, match=r"at most 2\.15 GB"):
        onnx_file.require_memory(3_000_000_000, 10**12, "m.onnx")


def test_inputs_that_clients_cannot_send_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["logits"], to=FLOAT)]
    path = write_network(tmp_path / "m.onnx", nodes=nodes, inputs=[("x", TensorProto.COMPLEX64, ["n", 3])], weights={})
    with pytest.raises(ImportRefused, match="COMPLEX64, which JSON cannot carry"):
        built(path, "regression")
    path = write_network(
        tmp_path / "s.onnx", nodes=[helper.make_node("Neg", ["x"], ["logits"])], inputs=[("x", FLOAT, [])], weights={}
    )
    with pytest.raises(ImportRefused, match="no axis for rows"):
        built(path, "regression")

"""Methods that change a graph, each run with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from headrace.compression import graphs
from headrace.compression.graphs import NothingToCompress
from headrace.compression.half import store_weights
from headrace.compression.quantise import quantise_dynamic, quantise_static
from headrace.compression.sparse import store_sparse

RNG = np.random.default_rng(3)
X = RNG.normal(0, 1, (256, 16)).astype(np.float32)
BATCHES = [{"x": X[i : i + 64]} for i in range(0, 256, 64)]


def write(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]]) -> Path:
    """A graph from `x` `(rows, 16)` to `y`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "width"])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(made, {"hops": "2"})
    onnx.save(made, path)
    return path


def network(path: Path, scale: float = 1.0) -> Path:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    weights = {"w1": RNG.normal(0, 0.2, (16, 64)), "b1": RNG.normal(0, 0.2, 64), "w2": RNG.normal(0, 0.2, (64, 8)) * scale}
    return write(path, nodes, {name: value.astype(np.float32) for name, value in weights.items()})


def run(path: Path, x: NDArray[np.float32] = X) -> NDArray[Any]:
    found: NDArray[Any] = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    return found


METHODS: dict[str, tuple[Callable[[Path, Path], list[str]], float, str]] = {
    "int8-dynamic": (quantise_dynamic, 0.05, "MatMulInteger"),
    "int8-static": (lambda source, target: quantise_static(source, target, BATCHES), 0.05, "QuantizeLinear"),
    "float16": (lambda source, target: store_weights(source, target, "float16"), 1e-3, "Cast"),
    "bfloat16": (lambda source, target: store_weights(source, target, "bfloat16"), 1e-2, "Cast"),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_gives_nearly_the_same_answers_with_a_smaller_file(method: str, tmp_path: Path) -> None:
    source, target = network(tmp_path / "model.onnx"), tmp_path / "smaller" / "model.onnx"
    make, error, operator = METHODS[method]
    assert make(source, target) == []
    expected, found = run(source), run(target)
    assert found.shape == expected.shape and 0 < np.abs(found - expected).max() < error * np.abs(expected).max()
    assert target.stat().st_size < 0.85 * source.stat().st_size
    made = onnx.load(target)
    assert graphs.operators(made)[operator] and made.metadata_props[0].value == "2"
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]
    again = tmp_path / "again.onnx"
    make(source, again)
    assert again.read_bytes() == target.read_bytes()


def test_an_answer_of_static_quantisation_does_not_depend_on_the_rows_beside_it(tmp_path: Path) -> None:
    source, target = network(tmp_path / "model.onnx"), tmp_path / "smaller.onnx"
    quantise_static(source, target, BATCHES)
    assert np.array_equal(run(target)[:1], run(target, X[:1]))


def test_a_graph_with_nothing_to_quantise_is_named(tmp_path: Path) -> None:
    weights: dict[str, NDArray[Any]] = {"w": RNG.normal(0, 1, 16).astype(np.float32)}
    source = write(tmp_path / "model.onnx", [helper.make_node("Mul", ["x", "w"], ["y"])], weights)
    for make, *_ in METHODS.values():
        with pytest.raises(NothingToCompress, match=r"no weights (of 256 values or more|that b?float16 could hold)"):
            make(source, tmp_path / "smaller.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_operators_without_a_form_in_8_bits_are_named_and_stay(tmp_path: Path) -> None:
    hidden = 12
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["steps"]),
        helper.make_node("GRU", ["steps", "w", "r"], ["", "state"], hidden_size=hidden),
        helper.make_node("Squeeze", ["state", "axis"], ["last"]),
        helper.make_node("MatMul", ["last", "out"], ["y"]),
    ]
    weights = {
        "w": RNG.normal(0, 0.3, (1, 3 * hidden, 16)).astype(np.float32),
        "r": RNG.normal(0, 0.3, (1, 3 * hidden, hidden)).astype(np.float32),
        "axis": np.array([0], np.int64),
        "out": RNG.normal(0, 0.3, (hidden, 30)).astype(np.float32),
    }
    source = write(tmp_path / "model.onnx", nodes, weights)
    for method in ("int8-dynamic", "int8-static"):
        target = tmp_path / f"{method}.onnx"
        (remark,) = METHODS[method][0](source, target)
        assert remark == f"GRU stays float32 (4 kB of weights; {method} leaves it)"
        assert np.abs(run(target) - run(source)).max() < 0.1
    alone = write(tmp_path / "gru.onnx", [*nodes[:2], helper.make_node("Squeeze", ["state", "axis"], ["y"])], weights)
    with pytest.raises(NothingToCompress, match="its weights are those of GRU, and int8-dynamic takes those of MatMul"):
        quantise_dynamic(alone, tmp_path / "none.onnx")


def test_weights_that_float16_cannot_hold_stay(tmp_path: Path) -> None:
    source, target = network(tmp_path / "model.onnx", scale=1e6), tmp_path / "smaller.onnx"
    assert store_weights(source, target, "float16") == ["weights beyond the range of float16 stay float32: w2"]
    assert np.isfinite(run(target)).all()
    assert store_weights(source, target, "bfloat16") == []
    assert np.abs(run(target) / run(source) - 1).mean() < 0.05


def test_bfloat16_rounds_to_the_nearest_and_ties_to_even(tmp_path: Path) -> None:
    tied = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, 65504.0, 1e-30], np.float32)
    weights = {"w": np.resize(tied, (16, 18)).astype(np.float32)}
    source = write(tmp_path / "model.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], weights)
    store_weights(source, tmp_path / "smaller.onnx", "bfloat16")
    found = run(tmp_path / "smaller.onnx", np.eye(16, dtype=np.float32))[0, :6]
    assert found[:4].tolist() == [1.0, 1.0, 1 + 2**-6, -3.140625]
    assert found[4] == 65536.0 and 0.99e-30 < found[5] < 1.01e-30


def test_zeros_are_stored_as_a_list_of_the_others_only_where_that_is_smaller(tmp_path: Path) -> None:
    source = network(tmp_path / "model.onnx")
    dense = source.read_bytes()
    assert "only with more than two thirds of zeros" in store_sparse(source)[0]
    assert source.read_bytes() == dense
    graph = onnx.load(source)
    pruned = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    pruned[np.abs(pruned) < np.quantile(np.abs(pruned), 0.9)] = 0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(pruned, "w1"))
    onnx.save(graph, source)
    expected, size = run(source), source.stat().st_size
    assert store_sparse(source) == ["1 tensors are stored as lists of values that are not zero"]
    assert np.array_equal(run(source), expected) and source.stat().st_size < 0.6 * size

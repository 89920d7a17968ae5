"""The model of the serving benchmarks, small and untrained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.serving_model import contract_of, sample
from headrace.runtime.input_field import InputField


def write_tiny_model(folder: Path) -> None:
    """Writes a model of one layer with the inputs and outputs of the CNN, whose export takes ten seconds."""
    folder.mkdir()
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    weights = np.random.default_rng(0).normal(0, 0.01, (784, 10)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["rows", 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([-1, 784], np.int64), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    pixels = InputField(name="pixels", dtype="uint8", shape=(28, 28), minimum=0, maximum=255)
    contract_of(pixels, sample().tolist()).write(folder / "contract.json")

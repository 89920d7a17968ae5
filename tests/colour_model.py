"""A real served model of pictures in colour, small enough to check by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.runtime.contract import Contract
from headrace.runtime.images import MEDIA_TYPES, WEBP, PictureFormat
from headrace.runtime.input_field import InputField

FORMAT = PictureFormat(height=6, width=4, channels=3, fit="pad", interpolation="bilinear", background=0)


def colour_model(folder: Path) -> Path:
    """The label is the strongest of red, green and blue in the mean of pictures of 6 × 4 pixels; logits: means over 10."""
    nodes = [
        helper.make_node("Cast", ["image"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["numbers", "axes"], ["means"], keepdims=0),
        helper.make_node("Div", ["means", "ten"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_colour",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["rows", *FORMAT.shape])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes"), numpy_helper.from_array(np.float32(10), "ten")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    field = InputField(
        name="image",
        dtype="uint8",
        shape=FORMAT.shape,
        minimum=0,
        maximum=255,
        accepts=["array", "base64", *MEDIA_TYPES, WEBP],
        picture=FORMAT,
    )
    contract = Contract(
        model="colours",
        task="image-classification",
        inputs=[field],
        output="probabilities",
        labels=["red", "green", "blue"],
        target="label",
        sample={"image": np.full(FORMAT.shape, 9).tolist()},
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    contract.write(folder / "contract.json")
    return folder

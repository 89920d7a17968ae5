"""Two real served models, small enough to check by hand: an image classifier and a regression over a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.recipe.data import TextConfig
from headrace.runtime.contract import Contract
from headrace.runtime.generation import STEPS, StateSpec, StepLayout, generation_inputs
from headrace.runtime.images import MEDIA_TYPES
from headrace.runtime.input_field import InputField
from headrace.runtime.tokenizer import END, START
from headrace.task_types.vocabulary import learn_vocabulary

ACCEPTED = ["array", "base64", *MEDIA_TYPES]
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]


def image_model(folder: Path, bias: float = 0.0, threads: int = 1) -> Path:
    """Two classes of 4x4 pixels: logits are the sums of the upper and the lower half over 255, plus `bias` on the lower."""
    weights = np.zeros((16, 2), np.float32)
    weights[:8, 0] = weights[8:, 1] = 1 / 255
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([0, bias], np.float32), "bias"),
        numpy_helper.from_array(np.array([-1, 16], np.int64), "flat"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_image",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["rows", 4, 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2])],
        constants,
    )
    contract = Contract(
        model="halves",
        task="image-classification",
        output="probabilities",
        labels=["upper", "lower"],
        target="label",
        inputs=[InputField(name="pixels", dtype="uint8", shape=(4, 4), minimum=0, maximum=255, accepts=ACCEPTED)],
        sample={"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]},
        threads=threads,
    )
    return _write(folder, graph, contract)


def table_model(folder: Path) -> Path:
    """`minutes = 2 * distance + code`, where the carrier's code is 10 for AA, 20 for BB and 0 for any other."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["carrier"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["AA", "BB"],
            values_floats=[10.0, 20.0],
            default_float=0.0,
        ),
        helper.make_node("Mul", ["distance", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "code"], ["value"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_table",
        [
            helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["rows"]),
            helper.make_tensor_value_info("carrier", TensorProto.STRING, ["rows"]),
        ],
        [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    contract = Contract(
        model="trips",
        task="regression",
        output="value",
        target="minutes",
        inputs=[InputField(name="distance", dtype="float32"), InputField(name="carrier", dtype="string", levels=["AA", "BB"])],
        sample={"distance": 3.5, "carrier": "AA"},
    )
    return _write(folder, graph, contract)


LETTERS = "abc "
BIGRAMS = {"start": "1000", "a": "0400", "b": "2030", "c": "0001", " ": "6000"}
"""What comes after what: logits of "abc " in digits; after a space the end is as likely as an a."""


def language_model(folder: Path, length: int = 4) -> Path:
    """A step graph whose logits depend on the last token alone, and which remembers the tokens before.

    Tokens are characters: ids 4 to 7 stand for "abc ". `BIGRAMS` are the logits of what follows; -9 of everything else.
    """
    table = np.full((8, 8), -9, np.float32)
    for row, name in enumerate(["start", *LETTERS]):
        table[START if name == "start" else row + 3, 4:] = [int(digit) for digit in BIGRAMS[name]]
    table[7, END] = 6
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["logits"]),
        helper.make_node("Cast", ["tokens"], ["read"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["past", "read"], ["next_past"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny_language",
        [
            helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "length"]),
            helper.make_tensor_value_info("past", TensorProto.FLOAT, ["rows", "past"]),
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "length", 8]),
            helper.make_tensor_value_info("next_past", TensorProto.FLOAT, ["rows", "present"]),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    contract = Contract(
        model="letters",
        task="text-generation",
        output="text",
        target="text",
        inputs=generation_inputs(length),
        sample={"prompt": "a", "max_tokens": 3, "temperature": 0.0},
        served_by="bentos.models.generation:GenerationModel",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STEPS).write_text(
        StepLayout(length=length, states=(StateSpec(name="past", shape=(0,), grows=1),)).model_dump_json()
    )
    (folder / "tokenizer.json").write_text(letters_tokenizer())
    return _write(folder, graph, contract)


def letters_tokenizer() -> str:
    """Characters, "abc " alone."""
    config = TextConfig(column="text", tokens="characters", lowercase=False)
    return learn_vocabulary(["aaaabbbcc "], config)  # the frequent ones first


def _write(folder: Path, graph: onnx.GraphProto, contract: Contract) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    contract.write(folder / "contract.json")
    return folder

"""A served text model whose predictions can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.runtime.contract import Contract
from headrace.runtime.input_field import InputField
from headrace.task_types.vocabulary import learn_vocabulary

LONGEST = 1000


def word_counter(folder: Path, nullable: bool = False, length: int = 6) -> Path:
    """Two classes: logits are how often `good` and how often `bad` stand among the first `length` words of a text."""
    config: Any = SimpleNamespace(column="text", tokens="words", vocabulary=50, length=length, lowercase=True, replace={})
    tokenizer = learn_vocabulary(["good good bad bad plane plane"], config)
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    counted = np.array([vocabulary["good"], vocabulary["bad"]], np.int64).reshape(1, 1, 2)
    nodes = [
        helper.make_node("Unsqueeze", ["tokens", "last"], ["single"]),
        helper.make_node("Equal", ["single", "counted"], ["found"]),
        helper.make_node("Cast", ["found"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ones", "middle"], ["logits"], keepdims=0),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([2], np.int64), "last"),
        numpy_helper.from_array(np.array([1], np.int64), "middle"),
        numpy_helper.from_array(counted, "counted"),
    ]
    graph = helper.make_graph(
        nodes,
        "word_counter",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "length"])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    (folder / "tokenizer.json").write_text(tokenizer)
    Contract(
        model="moods",
        task="text-classification",
        output="probabilities",
        labels=["up", "down"],
        target="mood",
        inputs=[InputField(name="text", dtype="string", nullable=nullable, longest=LONGEST, tokens=length)],
        sample={"text": "Good plane"},
        served_by="bentos.models.text:TextModel",
    ).write(folder / "contract.json")
    return folder


def up(*counts: int) -> float:
    """Softmax of the counts of `good` and `bad`."""
    good, bad = np.exp(counts)
    return float(good / (good + bad))

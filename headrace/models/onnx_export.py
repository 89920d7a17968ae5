"""Exports a torch module as an ONNX graph, with its preprocessing inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.models.schema import Schema

if TYPE_CHECKING:
    import onnx
    import torch
    from mlflow.models import ModelSignature

ML_OPSET = 3


def export_graph(
    model: torch.nn.Module, example: dict[str, torch.Tensor], dynamic: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """Exports `model` as a graph that takes any number of rows, and any size along the axes that `dynamic` names."""
    import torch

    axes = {name: {0: torch.export.Dim("rows"), **_dims(dynamic.get(name, {}))} for name in example}
    return to_graph(model, example, {"inputs": tuple(axes.values())}, ["answer"])


def to_graph(
    model: torch.nn.Module, example: Mapping[str, torch.Tensor], dynamic_shapes: Any, outputs: Sequence[str]
) -> onnx.ModelProto:
    """Exports a module as a graph with the inputs of `example` and these outputs; `dynamic_shapes` is the argument of
    `torch.export`."""
    import torch

    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    _forget_cached_kernels(torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            tuple(example.values()),
            input_names=list(example),
            output_names=list(outputs),
            dynamo=True,
            verbose=False,
            dynamic_shapes=dynamic_shapes,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    for node in graph.graph.node:  # they name the source file of the network, which is not part of the model
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def _forget_cached_kernels(*operators: torch._ops.OpOverload) -> None:
    """Makes operators look up their kernels again.

    During an export, torch.onnx registers kernels for texts of any length, but an operator that was used before still calls the
    kernel that it has cached: the length of the example would become part of the graph (seen in torch 2.13).
    """
    for operator in operators:
        operator._dispatch_cache.clear()


def _dims(axes: Mapping[int, str]) -> dict[int, Any]:
    import torch

    return {axis: torch.export.Dim(name) for axis, name in axes.items()}


def with_columns(graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
    """Replaces the inputs `numeric`, `times` and `categorical` of a graph with one input for each column.

    Numbers are stacked, as doubles if any column is a double; ONNX's LabelEncoder turns texts into their index in the
    vocabulary (0 if unknown).
    """
    import onnx
    from onnx import TensorProto, helper

    taken = [*(c.name for c in schema.numeric), *(c.name for c in schema.times), *(c.name for c in schema.categorical)]
    front, network = _free("columns/", taken), _free("network/", taken)
    axis = helper.make_tensor(f"{front}axis", TensorProto.INT64, [1], [1])
    wide = any(c.wide for c in schema.numeric)
    number = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    numbers = [
        helper.make_tensor_value_info(c.name, TensorProto.DOUBLE if c.wide else TensorProto.FLOAT, ["rows"])
        for c in schema.numeric
    ]
    moments = [helper.make_tensor_value_info(c.name, TensorProto.DOUBLE, ["rows"]) for c in schema.times]
    narrow = {c.name: f"{front}double_{i}" for i, c in enumerate(schema.numeric) if wide and not c.wide}
    casts = [helper.make_node("Cast", [name], [double], to=number) for name, double in narrow.items()]
    texts = [helper.make_tensor_value_info(c.name, TensorProto.STRING, ["rows"]) for c in schema.categorical]
    encoders = [
        helper.make_node(
            "LabelEncoder",
            [column.name],
            [f"{front}index_{i}"],
            domain="ai.onnx.ml",
            keys_strings=column.levels,
            values_int64s=list(range(1, len(column.levels) + 1)),
            default_int64=0,
        )
        for i, column in enumerate(schema.categorical)
    ]
    stacks = [
        *_stack(front, "numeric", [narrow.get(column.name, column.name) for column in schema.numeric]),
        *_stack(front, "times", [column.name for column in schema.times]),
        *_stack(front, "categorical", [f"{front}index_{i}" for i in range(len(schema.categorical))]),
    ]
    matrices = (
        ("numeric", number, len(numbers)),
        ("times", TensorProto.DOUBLE, len(moments)),
        ("categorical", TensorProto.INT64, len(texts)),
    )
    outputs = [helper.make_tensor_value_info(f"{front}{name}", dtype, ["rows", n]) for name, dtype, n in matrices if n]
    inputs, nodes = [*numbers, *moments, *texts], [*encoders, *casts, *stacks]

    core = onnx.ModelProto()
    core.CopyFrom(graph)
    if "ai.onnx.ml" not in {opset.domain for opset in graph.opset_import}:
        core.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    columns_graph = helper.make_model(
        helper.make_graph(nodes, "columns", inputs, outputs, [axis]),
        opset_imports=core.opset_import,
        ir_version=graph.ir_version,
    )
    core = onnx.compose.add_prefix(core, network)
    joints = [(output.name, network + output.name.removeprefix(front)) for output in outputs]
    merged = onnx.compose.merge_models(columns_graph, core, joints)
    if "answer" not in {value.name for value in inputs}:
        rename_output(merged, f"{network}answer", "answer")
    return merged


def _free(prefix: str, names: list[str]) -> str:
    """Returns a prefix with which none of `names` begins: columns may have any name."""
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _stack(front: str, matrix: str, columns: list[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that stack vectors `(rows,)` into `<front><matrix>`, `(rows, columns)`; no nodes for no columns."""
    from onnx import helper

    if not columns:
        return []
    upright = [f"{front}{matrix}_{i}" for i in range(len(columns))]
    turned = [
        helper.make_node("Unsqueeze", [flat, f"{front}axis"], [name]) for flat, name in zip(columns, upright, strict=True)
    ]
    return [*turned, helper.make_node("Concat", upright, [f"{front}{matrix}"], axis=1)]


def signature_of(graph: onnx.ModelProto) -> ModelSignature:
    """Returns MLflow's signature of the graph: one tensor for each input and output, with -1 for axes of any size."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema as Specs
    from mlflow.types import TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    def specs(values: Iterable[onnx.ValueInfoProto]) -> Specs:
        tensors = [(value.name, value.type.tensor_type) for value in values]
        return Specs(
            [
                TensorSpec(
                    np.dtype(tensor_dtype_to_np_dtype(tensor.elem_type)),
                    tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim),
                    name,
                )
                for name, tensor in tensors
            ]
        )

    return ModelSignature(inputs=specs(graph.graph.input), outputs=specs(graph.graph.output))


def rename_output(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    for value in graph.graph.output:
        value.name = new if value.name == old else value.name


def rename_input(graph: onnx.ModelProto, old: str, new: str) -> None:
    for node in graph.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
    for value in graph.graph.input:
        value.name = new if value.name == old else value.name


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))

"""From weights to the graph that is served: ONNX with its preprocessing inside, held against torch before it counts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ExportError
from headrace.files import write_json, write_text, write_with
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.recipe.task_types import task_type_of
from headrace.runtime.contract import Contract, Feeds
from headrace.task_types.base import Schema, TaskType

if TYPE_CHECKING:
    import onnx
    import onnxruntime
    import pandas as pd
    import torch
    from mlflow.models import ModelSignature

    from headrace.models.served import ServedModel

ML_OPSET = 3
PARITY_ROWS = (1, 33)
PARITY_SEED = 7
SHOWN_ROWS = 1000
TOLERANCE = 1e-4
"""Largest difference between torch and ONNX Runtime, relative to the largest answer: float32 sums in another order."""


def export_model(recipe: Recipe, project: Project) -> None:
    """Writes `export/model.onnx`, `export/contract.json` and `export/parity.json` from the trained weights.

    Raises:
        ExportError: the graph's answers differ from torch's.
    """
    artifacts = project.artifacts(recipe.name)
    out = artifacts / "export"
    out.mkdir(parents=True, exist_ok=True)
    kind, schema = task_type_of(recipe.task), Schema.read(artifacts / "prepared" / "schema.json")
    test = _shown(kind, artifacts / "prepared" / "test.parquet", recipe)
    model = load_weights(recipe, schema, artifacts / "train" / "model.pt")
    contract = kind.contract(schema, recipe, test.iloc[:1]).model_copy(update=model.describe())
    parity = kind.export(model, schema, recipe, contract, test, out)
    if schema.tokenizer is not None:
        write_text(out / "tokenizer.json", schema.tokenizer)
    contract.write(out / "contract.json")
    write_json(out / "parity.json", parity)


def _shown(kind: TaskType, test: Path, recipe: Recipe) -> pd.DataFrame:
    """Test rows to hold the graph against torch on; the first ones of a kind whose table may be larger than memory."""
    import pandas as pd

    from headrace.data.chunks import head

    return pd.read_parquet(test) if kind.learner(recipe) is None else head(test, SHOWN_ROWS)


def export_one_graph(
    kind: TaskType, model: ServedModel, schema: Schema, recipe: Recipe, contract: Contract, test: pd.DataFrame, folder: Path
) -> dict[str, float]:
    """Writes the whole model as one graph, `model.onnx`, and holds it against torch.

    Raises:
        ExportError: the graph's answers differ from torch's.
    """
    import torch

    example = {name: torch.from_numpy(array) for name, array in kind.encode(test.iloc[[0, -1]], schema, recipe).items()}
    graph = kind.complete(export_graph(model, example, kind.dynamic), schema)
    write_with(folder / "model.onnx", lambda beside: save_graph(graph, beside))
    return check_parity(model, folder / "model.onnx", test, schema, recipe, contract)


def load_weights(recipe: Recipe, schema: Schema, path: Path) -> ServedModel:
    """The trained model, ready to answer."""
    import torch

    model = task_type_of(recipe.task).module(recipe.model, schema)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def export_graph(
    model: torch.nn.Module, example: dict[str, torch.Tensor], dynamic: Mapping[str, Mapping[int, str]]
) -> onnx.ModelProto:
    """The model as a graph that takes any number of rows, and any size along the axes that `dynamic` names."""
    import torch

    axes = {name: {0: torch.export.Dim("rows"), **_dims(dynamic.get(name, {}))} for name in example}
    return to_graph(model, example, {"inputs": tuple(axes.values())}, ["answer"])


def to_graph(
    model: torch.nn.Module, example: Mapping[str, torch.Tensor], dynamic_shapes: Any, outputs: Sequence[str]
) -> onnx.ModelProto:
    """A module as a graph with the inputs of `example` and these outputs; `dynamic_shapes` is as `torch.export` has it."""
    import torch

    for noisy in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
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
    for node in graph.graph.node:  # traces of the file the network was written in: not part of the model
        del node.metadata_props[:]
        node.doc_string = ""
    return graph


def _dims(axes: Mapping[int, str]) -> dict[int, Any]:
    import torch

    return {axis: torch.export.Dim(name) for axis, name in axes.items()}


def with_columns(graph: onnx.ModelProto, schema: Schema) -> onnx.ModelProto:
    """Puts named columns in front of a graph that takes `numeric` and `categorical`: one input a column.

    Numbers are stacked, as doubles where a column is one; texts become their index in the vocabulary (0 when unknown) by
    ONNX's LabelEncoder.
    """
    import onnx
    from onnx import TensorProto, helper

    taken = [*(c.name for c in schema.numeric), *(c.name for c in schema.categorical)]
    front, network = _free("columns/", taken), _free("network/", taken)
    axis = helper.make_tensor(f"{front}axis", TensorProto.INT64, [1], [1])
    wide = any(c.wide for c in schema.numeric)
    number = TensorProto.DOUBLE if wide else TensorProto.FLOAT
    numbers = [
        helper.make_tensor_value_info(c.name, TensorProto.DOUBLE if c.wide else TensorProto.FLOAT, ["rows"])
        for c in schema.numeric
    ]
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
        *_stack(front, "categorical", [f"{front}index_{i}" for i in range(len(schema.categorical))]),
    ]
    matrices = (("numeric", number, len(numbers)), ("categorical", TensorProto.INT64, len(texts)))
    outputs = [helper.make_tensor_value_info(f"{front}{name}", kind, ["rows", n]) for name, kind, n in matrices if n]
    inputs, nodes = [*numbers, *texts], [*encoders, *casts, *stacks]

    opsets = [*graph.opset_import, helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    columns_graph = helper.make_model(
        helper.make_graph(nodes, "columns", inputs, outputs, [axis]), opset_imports=opsets, ir_version=graph.ir_version
    )
    core = onnx.ModelProto()
    core.CopyFrom(graph)
    core.opset_import.append(helper.make_opsetid("ai.onnx.ml", ML_OPSET))
    core = onnx.compose.add_prefix(core, network)
    joints = [(output.name, network + output.name.removeprefix(front)) for output in outputs]
    merged = onnx.compose.merge_models(columns_graph, core, joints)
    if "answer" not in {value.name for value in inputs}:
        rename_output(merged, f"{network}answer", "answer")
    return merged


def _free(prefix: str, names: list[str]) -> str:
    """A prefix that none of `names` begins with: columns may be called anything."""
    while any(name.startswith(prefix) for name in names):
        prefix = f"_{prefix}"
    return prefix


def _stack(front: str, matrix: str, columns: list[str]) -> list[onnx.NodeProto]:
    """Nodes that put vectors `(rows,)` side by side as `<front><matrix>`, `(rows, columns)`; none for no column."""
    from onnx import helper

    if not columns:
        return []
    upright = [f"{front}{matrix}_{i}" for i in range(len(columns))]
    turned = [
        helper.make_node("Unsqueeze", [flat, f"{front}axis"], [name]) for flat, name in zip(columns, upright, strict=True)
    ]
    return [*turned, helper.make_node("Concat", upright, [f"{front}{matrix}"], axis=1)]


def signature_of(graph: onnx.ModelProto) -> ModelSignature:
    """MLflow's signature of the graph's inputs and outputs: a tensor each, axes of any size as -1."""
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


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run_graph(path: Path, feeds: Feeds, batch: int = 4096) -> NDArray[Any]:
    """Answers of the graph for all rows, `(rows,)` or `(rows, classes)`, computed batch by batch."""
    session = open_graph(path)
    rows = len(next(iter(feeds.values())))
    parts = [session.run(None, {k: v[i : i + batch] for k, v in feeds.items()})[0] for i in range(0, rows, batch)]
    return np.concatenate(parts)


def check_parity(
    model: ServedModel, path: Path, test: pd.DataFrame, schema: Schema, recipe: Recipe, contract: Contract
) -> dict[str, float]:
    """Largest difference between torch and the graph, on test rows and on fresh ones, in batches of each size in
    `PARITY_ROWS`.

    Raises:
        ExportError: it exceeds `TOLERANCE`.
    """
    kind, rng = task_type_of(recipe.task), np.random.default_rng(PARITY_SEED)
    frames = [test.iloc[:rows] for rows in PARITY_ROWS]
    frames += [fresh for rows in PARITY_ROWS if (fresh := kind.fresh(schema, recipe, rows, rng)) is not None]
    pairs = ((kind.encode(frame, schema, recipe), kind.feeds(frame, contract, recipe)) for frame in frames)
    return compare(model, path, pairs, recipe)


def compare(model: ServedModel, path: Path, pairs: Iterable[tuple[Feeds, Feeds]], recipe: Recipe) -> dict[str, float]:
    """Largest difference between torch and the graph, each on its own form of the same batches.

    Args:
        pairs: the inputs of `model`, and those of the graph at `path`.

    Raises:
        ExportError: it exceeds `TOLERANCE`.
    """
    import torch

    def answers() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for inputs, feeds in pairs:
            with torch.inference_mode():
                wanted = model(*(torch.from_numpy(array) for array in inputs.values())).numpy()
            yield wanted, run_graph(path, feeds)

    return agreement(answers(), recipe.name)


def agreement(answers: Iterable[tuple[NDArray[Any], NDArray[Any]]], recipe: str) -> dict[str, float]:
    """Largest difference between what torch answers and what the graph does.

    Raises:
        ExportError: it exceeds `TOLERANCE`.
    """
    largest = 0.0
    for wanted, got in answers:
        scale = max(1.0, float(np.abs(wanted).max()))
        # np.maximum, since Python's max would pass over a NaN
        largest = float(np.maximum(largest, np.abs(wanted - got).max() / scale))
    if not largest <= TOLERANCE:
        raise ExportError(
            f"the exported graph differs from torch by {largest:.2g} (allowed: {TOLERANCE:g})",
            where=f"artifacts/{recipe}/export",
            hint="look for an operation in the model that ONNX computes otherwise; headrace/models/ is where the models are",
        )
    return {"largest_relative_difference": largest, "tolerance": TOLERANCE}

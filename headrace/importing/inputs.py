"""The inputs of a graph that others made, as fields of a contract, and the nodes that turn those fields into its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from headrace.errors import near_miss
from headrace.importing.errors import ImportIncomplete, ImportRefused
from headrace.recipe.models import ImportedConfig
from headrace.runtime.input_field import InputField
from headrace.runtime.number_limits import DType

if TYPE_CHECKING:
    import onnx

ROWS = "rows"
INNER, FRONT = "model/", "front/"
"""Begin the names of the values of the graph itself, and of those that are added in front of it."""
MAX_LEVELS = 1000
"""Most categories of a text that a contract lists."""
DTYPES: dict[str, DType] = {
    "FLOAT": "float32",
    "FLOAT16": "float32",
    "BFLOAT16": "float32",
    "DOUBLE": "float64",
    "INT64": "int64",
    "INT32": "int64",
    "INT16": "int64",
    "INT8": "int64",
    "UINT8": "uint8",
    "UINT16": "int64",
    "UINT32": "int64",
    "BOOL": "int64",
    "STRING": "string",
}
"""What clients send for each type of ONNX."""
SAME = {"FLOAT", "DOUBLE", "INT64", "UINT8", "STRING"}
"""Types that need no conversion in the graph."""


@dataclass(frozen=True)
class GraphInput:
    """An input of a graph."""

    name: str
    type: str
    """Name of its type in ONNX."""
    shape: tuple[int | None, ...]
    """Shape of one row; None for an axis that the graph leaves open."""
    rows: int | None
    """Rows that the graph takes; None for any number."""


def inputs_of(graph: onnx.GraphProto, shown: str) -> list[GraphInput]:
    """Returns the inputs of a graph, without its weights.

    Raises:
        ImportRefused: an input is not a tensor, has no rows, or is of a type that clients cannot send.
    """
    from onnx import TensorProto

    weights = {tensor.name for tensor in graph.initializer}
    found = []
    for value in graph.input:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            raise ImportRefused(
                f"the input {value.name!r} of {shown} is not a tensor", where="model.source", hint="export it with tensors only"
            )
        tensor = value.type.tensor_type
        name = TensorProto.DataType.Name(tensor.elem_type)
        if name not in DTYPES:
            raise ImportRefused(
                f"the input {value.name!r} of {shown} has the type {name}, which JSON cannot carry",
                where="model.source",
                hint=f"export it with one of {', '.join(DTYPES)}",
            )
        dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in tensor.shape.dim]
        if not dims:
            raise ImportRefused(
                f"the input {value.name!r} of {shown} has no axis for rows",
                where="model.source",
                hint="export it so that the first axis of each input is the rows",
            )
        found.append(GraphInput(value.name, name, tuple(dims[1:]), dims[0]))
    if not found:
        raise ImportRefused(f"{shown} has no inputs", where="model.source", hint="export it with its inputs")
    return found


def completed(inputs: Sequence[GraphInput], config: ImportedConfig) -> list[GraphInput]:
    """Returns the inputs with the shapes of the recipe.

    Raises:
        ImportIncomplete: an axis is open, and the recipe does not say its size.
        ImportRefused: the recipe names an unknown input, or another shape than the graph's.
    """
    names = [one.name for one in inputs]
    if unknown := sorted(config.shapes.keys() - set(names)):
        raise ImportRefused(
            f"the model has no input {unknown[0]!r}; {near_miss(unknown[0], names)}", where="model.shapes", hint="correct it"
        )
    found = []
    for one in inputs:
        wanted = tuple(config.shapes.get(one.name, one.shape))
        fits = len(wanted) == len(one.shape) and all(ours in (None, size) for ours, size in zip(one.shape, wanted, strict=True))
        if one.name in config.shapes and not fits:
            raise ImportRefused(
                f"the input {one.name!r} takes rows of the shape {_shown(one.shape)}, not {_shown(wanted)}",
                where="model.shapes",
                hint="correct it: the numbers that the model fixes cannot be others",
            )
        if None in wanted:
            example = ",".join("SIZE" if size is None else str(size) for size in one.shape)
            raise ImportIncomplete(
                f"the input {one.name!r} takes rows of the shape {_shown(one.shape)}; the model leaves the sizes with ? open",
                where="model.shapes",
                options={"shapes": f"{one.name}={example}"},
            )
        found.append(GraphInput(one.name, one.type, wanted, one.rows))
    return found


def fields_of(
    inputs: Sequence[GraphInput], config: ImportedConfig, graph: onnx.GraphProto, levels: Mapping[str, list[str]]
) -> list[InputField]:
    """Returns the fields that clients send: one for each input, or for each column of the only input.

    Args:
        levels: categories of texts, by the name of the input, where they are known.

    Raises:
        ImportRefused: the recipe names columns, and the model has no such matrix.
    """
    if config.inputs is None:
        return [_field(one, levels.get(one.name) or _levels(one.name, graph)) for one in inputs]
    only = inputs[0]
    if len(set(config.inputs)) != len(config.inputs):
        raise ImportRefused("a name is listed twice", where="model.inputs", hint="give each column a different name")
    if len(inputs) != 1 or len(only.shape) != 1 or only.type == "STRING":
        raise ImportRefused(
            "names of columns are for a model with one matrix of numbers; this one takes "
            + ", ".join(f"{one.name} {_shown(one.shape)}" for one in inputs),
            where="model.inputs",
            hint="remove it",
        )
    if only.shape[0] != len(config.inputs):
        raise ImportRefused(
            f"{len(config.inputs)} names are given, and the input {only.name!r} has {only.shape[0]} columns",
            where="model.inputs",
            hint="name each column, in the order of training",
        )
    return [InputField(name=name, dtype=DTYPES[only.type]) for name in config.inputs]


def add_front(graph: onnx.GraphProto, inputs: Sequence[GraphInput], columns: Sequence[str] | None) -> None:
    """Replaces the inputs of a graph with those that clients send: scalars for columns, types that JSON has.

    Args:
        graph: its names begin with `INNER`.
        columns: names of the columns of the only input, if each is a separate field.
    """
    from onnx import TensorProto, helper

    upright = helper.make_tensor(f"{FRONT}upright", TensorProto.INT64, [2], [-1, 1])
    nodes, values = [], []
    for one in inputs:
        inner = f"{INNER}{one.name}"
        sent = TensorProto.DataType.Value(_sent_type(one))
        names = columns if columns is not None else [one.name]
        scalars = columns is not None or one.shape == (1,)
        shape: list[str | int | None] = [ROWS] if scalars else [ROWS, *one.shape]
        values += [helper.make_tensor_value_info(name, sent, shape) for name in names]
        current = names[0]
        if scalars:
            nodes += [helper.make_node("Reshape", [name, upright.name], [f"{FRONT}column/{name}"]) for name in names]
            current = f"{FRONT}matrix/{one.name}"
            nodes.append(helper.make_node("Concat", [f"{FRONT}column/{name}" for name in names], [current], axis=1))
        nodes.append(helper.make_node("Cast", [current], [inner], to=TensorProto.DataType.Value(one.type)))
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name in weights]  # of graphs before IR version 4
    body = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *body])
    graph.input.extend([*values, *kept])
    if any(node.op_type == "Reshape" for node in nodes):
        graph.initializer.append(upright)
    del graph.value_info[:]  # with the number of rows of the export


def sample_of(fields: Sequence[InputField], given: dict[str, Any] | None) -> dict[str, Any]:
    """Returns a valid instance: the recipe's, or one of zeros and of the first category of each text."""
    import numpy as np

    if given is not None:
        return given
    zero: dict[str, Any] = {"float32": 0.0, "float64": 0.0, "int64": 0, "uint8": 0}

    def value(field: InputField) -> Any:
        if field.dtype == "string":
            first = field.levels[0] if field.levels else ""
            return np.full(field.shape, first, dtype=object).tolist() if field.shape else first
        return np.full(field.shape, zero[field.dtype]).tolist() if field.shape else zero[field.dtype]

    return {field.name: value(field) for field in fields}


def _field(one: GraphInput, levels: list[str]) -> InputField:
    shape = () if one.shape == (1,) else cast("tuple[int, ...]", one.shape)
    if one.type == "STRING":
        return InputField(name=one.name, dtype="string", shape=shape, levels=levels[:MAX_LEVELS] or None)
    bounds: dict[str, float] = {"minimum": 0, "maximum": 1} if one.type == "BOOL" else {}
    bounds = {"minimum": 0, "maximum": 255} if one.type == "UINT8" else bounds
    return InputField(name=one.name, dtype=DTYPES[one.type], shape=shape, boolean=one.type == "BOOL" and not shape, **bounds)


def _levels(name: str, graph: onnx.GraphProto) -> list[str]:
    """The categories of a text that is encoded by one node of the graph."""
    for node in graph.node:
        if name in node.input and node.op_type in ("OneHotEncoder", "LabelEncoder"):
            for attribute in node.attribute:
                if attribute.name in ("cats_strings", "keys_strings", "classes_strings"):
                    return [text.decode(errors="replace") for text in attribute.strings]
    return []


def _sent_type(one: GraphInput) -> str:
    return one.type if one.type in SAME else {"float32": "FLOAT", "int64": "INT64"}[DTYPES[one.type]]


def _shown(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"

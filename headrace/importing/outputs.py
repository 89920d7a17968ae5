"""The output of a graph that others made: which one it is, its labels, and the nodes that turn it into a contract's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import near_miss
from headrace.importing.errors import ImportIncomplete, ImportRefused
from headrace.importing.inputs import INNER
from headrace.recipe.models import ImportedConfig

if TYPE_CHECKING:
    import onnx

BACK = "back/"
"""Begins the names of values that are added behind a graph."""
CLASSIFIERS = ("LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier")
REGRESSORS = ("LinearRegressor", "SVMRegressor", "TreeEnsembleRegressor")
LABEL_KEYS = ("labels", "classes", "class_names", "names", "id2label")
"""Names of metadata of a graph under which programs store the labels."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a row may be from 1 in total."""

Labels = list[str | int]


def drop_zipmap(graph: onnx.GraphProto) -> None:
    """Removes ZipMap nodes: probabilities are a matrix instead of a list of mappings."""
    from onnx import TensorProto, helper

    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        for i, value in enumerate(graph.output):
            if value.name == node.output[0]:
                graph.output.remove(value)
                matrix = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
                graph.output.insert(i, matrix)
        node.op_type, node.domain = "Identity", ""
        del node.attribute[:]


def task_of(graph: onnx.GraphProto) -> str | None:
    """The task of a graph with operators of ONNX-ML; None for a network, which does not say it."""
    operators = {node.op_type for node in graph.node}
    if operators & {*CLASSIFIERS, "ZipMap"}:
        return "classification"
    return "regression" if operators & set(REGRESSORS) else None


def labels_of(model: onnx.ModelProto) -> Labels | None:
    """The labels that a graph says: those of its classifier, or of its metadata."""
    for node in model.graph.node:
        if node.op_type in (*CLASSIFIERS, "ZipMap"):
            for attribute in node.attribute:
                if attribute.name in ("classlabels_strings", "classlabels_string") and attribute.strings:
                    return [text.decode(errors="replace") for text in attribute.strings]
                if attribute.name in ("classlabels_ints", "classlabels_int64s", "classlabels_int64") and attribute.ints:
                    return [int(value) for value in attribute.ints]
    for entry in model.metadata_props:
        if entry.key.lower() in LABEL_KEYS and (found := _parsed(entry.value)):
            return found
    return None


def licence_of(model: onnx.ModelProto) -> str | None:
    """The licence in the metadata of a graph."""
    found = {entry.key.lower(): entry.value.strip() for entry in model.metadata_props}
    return found.get("license") or found.get("licence") or None


def choose_output(found: Mapping[str, NDArray[Any]], rows: int, task: str, wanted: str | None) -> str:
    """Returns the name of the output to serve.

    Args:
        found: the outputs for some rows.
        wanted: the recipe's choice.

    Raises:
        ImportRefused: there is none of numbers.
        ImportIncomplete: several could be meant.
    """
    if wanted is not None:
        if wanted not in found:
            raise ImportRefused(
                f"the model has no output {wanted!r}; {near_miss(wanted, found)}", where="model.output", hint="correct it"
            )
        _check(wanted, found[wanted], rows)
        return wanted
    kinds = "f" if task != "regression" else "fiu"
    usable = [name for name, value in found.items() if _fits(value, rows) and value.dtype.kind in kinds]
    if len(usable) > 1:
        usable = [name for name in usable if "prob" in name.lower()] or usable
    if len(usable) == 1:
        return usable[0]
    shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in found.items())
    if not usable:
        raise ImportRefused(
            f"no output of the model can be served as {task}: for {rows} rows it gives {shapes}",
            where="model.output",
            hint="export it with an output of (rows, classes) or (rows,)",
        )
    raise ImportIncomplete(
        f"the model has {len(usable)} outputs that could be meant; for {rows} rows it gives {shapes}",
        where="model.output",
        options={"output": usable[0]},
    )


def columns_of(values: NDArray[Any]) -> int:
    """Numbers of an output for each row."""
    return 1 if values.ndim == 1 else int(values.shape[1])


def checked_labels(config: ImportedConfig, known: Labels | None, columns: int, output: str, task: str) -> Labels:
    """Returns the labels of a classification.

    Raises:
        ImportIncomplete: neither the recipe nor the model says them.
        ImportRefused: their number is not that of the output.
    """
    labels = list(config.labels) if config.labels is not None else known
    needed = 2 if columns == 1 and task == "classification" else columns
    if labels is None:
        names = ",".join(f"NAME{i}" for i in range(needed)) if needed <= 5 else "FILE"
        raise ImportIncomplete(
            f"the output {output!r} has {columns} column{'s' if columns > 1 else ''}, and the model does not name its "
            f"{needed} labels" + ("" if needed <= 5 else " (a file of labels has one a line)"),
            where="model.labels",
            options={"labels": names},
        )
    if len(labels) != needed or len(set(map(str, labels))) != len(labels):
        raise ImportRefused(
            f"{len(labels)} labels are given ({', '.join(map(str, labels[:8]))}), and the output {output!r} needs {needed} "
            "that differ",
            where="model.labels",
            hint="list them in the order of the output",
        )
    return labels


def checked_activation(config: ImportedConfig, values: NDArray[Any], output: str, task: str) -> str:
    """Returns what turns an output into probabilities.

    Args:
        values: the output for some rows.

    Raises:
        ImportIncomplete: the output gives no probabilities, and the recipe does not say what turns it into them.
        ImportRefused: the recipe says `softmax` of one column, or `none` of numbers that are not probabilities.
    """
    columns, chosen = columns_of(values), config.activation
    if chosen == "softmax" and (columns == 1 or task == "multilabel-classification"):
        raise ImportRefused(
            f"softmax needs a column for each of several classes, of which a row has one; the output {output!r} has {columns}",
            where="model.activation",
            hint="use sigmoid",
        )
    if chosen in ("softmax", "sigmoid"):
        return chosen
    rows = values.reshape(len(values), -1).astype(float)
    within = bool(((rows >= -SUM_TOLERANCE) & (rows <= 1 + SUM_TOLERANCE)).all())
    sums = rows.sum(axis=1)
    one_per_row = columns > 1 and task == "classification"
    if within and (not one_per_row or bool((np.abs(sums - 1) <= SUM_TOLERANCE).all())):
        return "none"
    worst = int(np.abs(sums - 1).argmax()) if one_per_row else int(np.abs(rows - 0.5).max(axis=1).argmax())
    numbers = ", ".join(f"{value:.4g}" for value in rows[worst][:4])
    what = f"the numbers of a row sum to {sums[worst]:.4g}" if one_per_row and within else f"a row begins with {numbers}"
    message = f"the output {output!r} gives no probabilities ({what})"
    needed = "softmax" if one_per_row else "sigmoid"
    if chosen == "none":
        raise ImportRefused(message, where="model.activation", hint=f"write {needed} where these are logits")
    raise ImportIncomplete(
        f"{message}; where these are logits, {needed} turns them into probabilities",
        where="model.activation",
        options={"activation": needed},
    )


def add_back(model: onnx.ModelProto, output: str, columns: int, activation: str, is_binary: bool, is_scalar: bool) -> str:
    """Replaces the outputs of a graph with one, which has the form of a contract's answer; returns its name.

    Args:
        output: the output to serve, without the prefix of the graph's names.
        is_binary: whether one probability becomes those of two classes.
        is_scalar: whether a column becomes a number for each row.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    current = f"{INNER}{output}"

    def add(operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{BACK}{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        graph.initializer.append(numpy_helper.from_array(value, f"{BACK}{name}"))
        return f"{BACK}{name}"

    current = add("Cast", [current], to=TensorProto.FLOAT)
    current = add("Reshape", [current, constant("shape", np.array([-1, columns], np.int64))])
    if activation == "softmax":
        current = add("Softmax", [current], axis=1)
    elif activation == "sigmoid":
        current = add("Sigmoid", [current])
    if is_binary:
        rest = add("Sub", [constant("one", np.array([1.0], np.float32)), current])
        current = add("Concat", [rest, current], axis=1)
    if is_scalar:
        current = add("Reshape", [current, constant("flat", np.array([-1], np.int64))])
    answer = "answer" if "answer" not in {value.name for value in graph.input} else f"{BACK}answer"
    nodes.append(helper.make_node("Identity", [current], [answer]))
    graph.node.extend(nodes)
    del graph.output[:]
    shape: list[str | int] = ["rows"] if is_scalar else ["rows", 2 if is_binary else columns]
    graph.output.append(helper.make_tensor_value_info(answer, TensorProto.FLOAT, shape))
    return answer


def _fits(values: Any, rows: int) -> bool:
    is_array = isinstance(values, np.ndarray)
    return is_array and values.ndim in (1, 2) and len(values) == rows and values.dtype.kind in "fiu" and values.size >= rows


def _check(name: str, values: Any, rows: int) -> None:
    if not _fits(values, rows):
        raise ImportRefused(
            f"the output {name!r} has the shape {list(np.shape(values))} for {rows} rows, and an answer needs (rows,) or "
            "(rows, columns) of numbers",
            where="model.output",
            hint="name another output, or export the model with such a one",
        )


def _parsed(text: str) -> Labels | None:
    """Labels from JSON, from a mapping of numbers to names as Python prints it, or from a text with commas."""
    import ast

    found: Any = None
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    if isinstance(found, dict):
        try:
            found = [found[key] for key in sorted(found, key=int)]
        except (TypeError, ValueError):
            return None
    if found is None and "," in text:
        found = [part.strip() for part in text.split(",")]
    if isinstance(found, list) and len(found) > 1 and all(isinstance(one, str | int) for one in found):
        return [one if isinstance(one, str) else int(one) for one in found]
    return None

"""What the methods on ONNX graphs share: weights, operators, and files that are the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.files import write_with

if TYPE_CHECKING:
    import onnx

FEWEST_VALUES = 256
"""A tensor with fewer values stays as it is: a bias or the scale of a column takes little space, and its error would be that of
a whole channel."""


class NothingToCompress(Exception):
    """The method finds nothing in the graph that it could make smaller; the message is the reason."""


def weights(graph: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yields the float32 weights of a graph that are worth compressing."""
    from onnx import TensorProto

    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and size_of(tensor) >= FEWEST_VALUES:
            yield tensor


def size_of(tensor: onnx.TensorProto) -> int:
    """Returns the number of values of a tensor."""
    size = 1
    for dimension in tensor.dims:
        size *= dimension
    return size


def operators(graph: onnx.ModelProto) -> Counter[str]:
    """Returns how many nodes of each operator a graph has."""
    return Counter(node.op_type for node in graph.graph.node)


def left_in_float(graph: onnx.ModelProto) -> dict[str, int]:
    """Returns the bytes of float32 weights by the operator that takes them, largest first."""
    sizes = {tensor.name: 4 * size_of(tensor) for tensor in weights(graph)}
    found: Counter[str] = Counter()
    for node in graph.graph.node:
        for name in node.input:
            found[node.op_type] += sizes.pop(name, 0)
    return {name: size for name, size in found.most_common() if size}


def save(graph: onnx.ModelProto, path: Path) -> None:
    """Writes a graph; the same graph gives the same bytes.

    Raises:
        DiskFull: no space is left.
    """
    content = graph.SerializeToString(deterministic=True)
    write_with(path, lambda beside: beside.write_bytes(content))

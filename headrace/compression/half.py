"""Weights stored in 16 bits. The graph converts them back when it is loaded, and computes in float32 as before.

ONNX Runtime has float16 kernels on the CPU for few operators only, and none for bfloat16 in most: a graph that computes in 16
bits is converted back node by node, which is slower than float32. Stored weights halve the file and cost nothing in a request,
since constants are folded when a session is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.compression import graphs
from headrace.compression.graphs import NothingToCompress

LARGEST_FLOAT16 = 65504.0
SMALLEST_FLOAT16 = 6.0e-5
"""Below it float16 loses digits."""


def store_weights(source: Path, target: Path, kind: Literal["float16", "bfloat16"]) -> list[str]:
    """Writes the graph at `source` to `target` with weights in 16 bits; returns remarks.

    Weights that float16 cannot hold, because they are larger than 65,504 or all smaller than 0.00006, stay as they are.

    Raises:
        NothingToCompress: no weights are large enough to be worth it.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = onnx.load(source)
    casts, unfit = [], []
    for tensor in list(graphs.weights(graph)):
        values = numpy_helper.to_array(tensor)
        if kind == "float16" and not _fits_float16(values):
            unfit.append(tensor.name)
            continue
        short = f"{tensor.name}/{kind}"
        casts.append(helper.make_node("Cast", [short], [tensor.name], to=TensorProto.FLOAT))
        dtype = TensorProto.FLOAT16 if kind == "float16" else TensorProto.BFLOAT16
        tensor.CopyFrom(helper.make_tensor(short, dtype, tensor.dims, _rounded(values, kind), raw=True))
    if not casts:
        raise NothingToCompress(f"it has no weights that {kind} could hold")
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.checker.check_model(graph, full_check=True)
    graphs.save(graph, target)
    return [f"weights beyond the range of float16 stay float32: {', '.join(unfit)}"] if unfit else []


def _rounded(values: NDArray[np.float32], kind: str) -> bytes:
    """Returns the bytes of the values in 16 bits, rounded to the nearest, ties to even. bfloat16 is the upper half of float32,
    and numpy does not have it."""
    if kind == "float16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    upper = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return upper.astype("<u2").tobytes()


def _fits_float16(values: NDArray[np.float32]) -> bool:
    largest = float(np.abs(values).max(initial=0.0))
    return largest <= LARGEST_FLOAT16 and (largest == 0.0 or largest >= SMALLEST_FLOAT16)

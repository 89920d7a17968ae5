"""Pruned weights as ONNX's sparse tensors: the values that are not zero, with their places.

ONNX Runtime makes dense tensors of them when it loads the graph: the file is smaller, a request takes as long as before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.compression import graphs

BYTES_OF_A_VALUE = 12
"""Four for the value, eight for its place."""


def store_sparse(path: Path) -> list[str]:
    """Replaces weights of the graph at `path` that are smaller that way; returns a remark."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = onnx.load(path)
    kept, sparse = [], []
    large = {tensor.name for tensor in graphs.weights(graph)}
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1) if tensor.name in large else np.ones(1, np.float32)
        places = np.flatnonzero(values)
        if BYTES_OF_A_VALUE * len(places) >= 4 * values.size:
            kept.append(tensor)
            continue
        content = helper.make_tensor(tensor.name, TensorProto.FLOAT, [len(places)], values[places])
        where = helper.make_tensor(f"{tensor.name}/places", TensorProto.INT64, [len(places)], places)
        sparse.append(helper.make_sparse_tensor(content, where, list(tensor.dims)))
    if not sparse:
        return ["the file is as large as before: only with more than two thirds of zeros a list of the others is smaller"]
    tensors = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(tensors)
    graph.graph.sparse_initializer.extend(sparse)
    graphs.save(graph, path)
    return [f"{len(sparse)} tensors are stored as lists of values that are not zero"]

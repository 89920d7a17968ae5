"""Small models as others make them, in each format that can be imported."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper

from headrace.importing.build import Built, Wanted, build
from headrace.recipe.models import ImportedConfig

NAMES = ["length", "width", "height"]
LABELS = ["large", "medium", "small"]


def rows(count: int = 90, seed: int = 3) -> tuple[pd.DataFrame, Any]:
    """Three numbers, and the label that their sum decides."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(0, 1, (count, 3)), columns=NAMES)
    total = frame.sum(axis=1)
    return frame, np.where(total > 0.7, "large", np.where(total > -0.7, "medium", "small"))


def network(
    nodes: Sequence[onnx.NodeProto] | None = None,
    *,
    inputs: Sequence[tuple[str, int, list[Any]]] = (("x", TensorProto.FLOAT, ["n", 4]),),
    outputs: Sequence[tuple[str, int, list[Any]]] = (("logits", TensorProto.FLOAT, ["n", 3]),),
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A graph; by default one of a linear layer from `x` (n, 4) to `logits` (n, 3)."""
    rng = np.random.default_rng(5)
    weights = {"w": rng.normal(0, 1, (4, 3)).astype(np.float32)} if weights is None else weights
    nodes = [helper.make_node("MatMul", ["x", "w"], ["logits"])] if nodes is None else nodes
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(model, metadata or {})
    return model


def write_network(path: Path, **options: Any) -> Path:
    """Writes `network(...)` to `path`."""
    path.write_bytes(network(**options).SerializeToString())
    return path


def probabilities(columns: int = 3) -> dict[str, Any]:
    """Options of `network` for a graph with a softmax at its end."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["hidden"]), helper.make_node("Softmax", ["hidden"], ["p"], axis=1)]
    return {"nodes": nodes, "outputs": [("p", TensorProto.FLOAT, ["n", columns])]}


def write_external(path: Path, location: str | None = None) -> Path:
    """Writes a graph whose weights are in the file `weights.bin` beside it, or in `location` as the graph says."""
    model = network(weights={"w": np.random.default_rng(5).normal(0, 1, (64, 3)).astype(np.float32)}, inputs=[
        ("x", TensorProto.FLOAT, ["n", 64])
    ])  # fmt: skip
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location="weights.bin", size_threshold=0)
    if location is not None:
        model = onnx.load(path, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            entry.value = location if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())
    return path


def write_skops(path: Path, model: Any = None) -> Path:
    """Writes a model of scikit-learn; by default a logistic regression behind a scaler, fitted on `rows()`."""
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if model is None:
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(*rows())
    skops.io.dump(model, path)
    return path


def built(path: Path, task: str | None = None, out: Path | None = None, **fields: Any) -> Built:
    """Imports the model at `path` as a release does."""
    config = ImportedConfig(source=path.name, **fields)
    return build(path, path.name, Wanted("made", task, config), out or path.parent / "export")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serves the files of a folder on loopback; gives its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()

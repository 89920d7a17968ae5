"""Weights and activations in 8 bits, by ONNX Runtime's quantisation.

The scheme is that of Jacob et al. 2018 (arXiv:1712.05877): a number is a scale times an integer minus a zero point. Weights
get a scale for each output channel in `int8-static` (Krishnamoorthi 2018, arXiv:1806.08342), and 7 of 8 bits: on x86 without
VNNI the sum of two products of 8 bits would saturate, and answers would depend on the processor.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.compression import graphs
from headrace.compression.graphs import NothingToCompress
from headrace.runtime.contract import Feeds

if TYPE_CHECKING:
    import onnx

DYNAMIC = ("MatMul", "Gemm", "LSTM", "Gather")
"""Operators of `int8-dynamic`. Convolutions are left out: with ranges measured in each request ONNX Runtime has no fused kernel
for them, and they took five times as long as in float32."""
STATIC = ("Conv", "MatMul", "Gemm", "Relu", "MaxPool")
"""Operators of `int8-static`; the last two only pass on what is quantised before them."""
QUANTISED = {"DynamicQuantizeLSTM", "DequantizeLinear"}
"""Operators of quantised graphs that may have biases or scales in float32."""


def quantise_dynamic(source: Path, target: Path, types: Sequence[str] = DYNAMIC) -> list[str]:
    """Writes the graph at `source` to `target` with weights in 8 bits, and activations whose range is measured in each run;
    returns remarks.

    Raises:
        NothingToCompress: the graph has no operator that this method quantises.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _scratch(target) as scratch:
        before, found = _prepared(source, scratch), scratch / "model.onnx"
        _require_weights(before, types, "int8-dynamic")
        quantize_dynamic(before, found, list(types), reduce_range=True, weight_type=QuantType.QInt8)
        return _finish(source, found, target, "int8-dynamic")


def quantise_static(source: Path, target: Path, batches: Sequence[Feeds]) -> list[str]:
    """Writes the graph at `source` to `target` with weights and activations in 8 bits, with the ranges that activations have
    in `batches`; embeddings are stored in 8 bits too. Returns remarks.

    Raises:
        NothingToCompress: the graph has no operator that this method quantises.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    with _scratch(target) as scratch:
        before, found = _prepared(source, scratch), scratch / "model.onnx"
        _require_weights(before, (*STATIC, "Gather"), "int8-static")
        types = {"weight_type": QuantType.QInt8}
        if _has_weights(onnx.load(before), STATIC):
            quantize_static(
                before,
                found,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(STATIC),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                extra_options={"MatMulConstBOnly": True},
                **types,
            )
            before, found = found, scratch / "with_embeddings.onnx"
        if _has_weights(onnx.load(before), ("Gather",)):
            quantize_dynamic(before, found, op_types_to_quantize=["Gather"], **types)
            before = found
        return _finish(source, before, target, "int8-static")


def _prepared(source: Path, scratch: Path) -> Path:
    """Writes the graph with its constants folded: weights that a node computes from others could not be quantised."""
    import onnx
    from onnxruntime.quantization import quant_pre_process

    path = scratch / "prepared.onnx"
    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    graph = onnx.load(path)
    versions = {opset.domain: opset.version for opset in graph.opset_import}
    del graph.opset_import[:]  # ONNX Runtime writes domains of its own, some of them twice
    graph.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    onnx.save(graph, path)
    return path


class _Reader:
    """Batches in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, batches: Sequence[Feeds]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def _has_weights(graph: onnx.ModelProto, types: Sequence[str]) -> bool:
    """Whether a node of one of these operators has weights that are large enough."""
    names = {tensor.name for tensor in graphs.weights(graph)}
    return any(node.op_type in types and names & set(node.input) for node in graph.graph.node)


def _require_weights(path: Path, types: Sequence[str], method: str) -> None:
    """
    Raises:
        NothingToCompress: no node of these operators has weights that are large enough.
    """
    import onnx

    graph = onnx.load(path)
    if not _has_weights(graph, types):
        left = ", ".join(graphs.left_in_float(graph))
        found = f"its weights are those of {left}" if left else f"it has no weights of {graphs.FEWEST_VALUES} values or more"
        raise NothingToCompress(f"{found}, and {method} takes those of {', '.join(types)}")


def _finish(source: Path, found: Path, target: Path, method: str) -> list[str]:
    """Writes the result, and names the weights that stay in float32."""
    import onnx

    graph, original = onnx.load(found), onnx.load(source)
    for node in graph.graph.node:
        node.doc_string = ""
    del graph.metadata_props[:]
    graph.metadata_props.extend(original.metadata_props)
    graphs.save(graph, target)
    left = {name: size for name, size in graphs.left_in_float(graph).items() if name not in QUANTISED}
    return [f"{name} stays float32 ({size / 1e3:,.0f} kB of weights; {method} leaves it)" for name, size in left.items()]


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A folder for the files that ONNX Runtime writes beside its result; its remarks about the input are not shown."""
    target.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it logs to the root logger
    try:
        with tempfile.TemporaryDirectory(prefix=".quantise-", dir=target.parent) as folder:
            yield Path(folder)
    finally:
        logger.setLevel(level)

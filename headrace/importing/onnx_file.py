"""Reads a graph that others made: weights in further files, sizes, opsets and operators are checked before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from headrace.importing.errors import ImportRefused, damaged

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""Largest graph with its weights: protobuf has no larger messages, and a registered version is one file."""
OLDEST_OPSET = 7
"""ONNX Runtime guarantees older opsets no longer."""
MEMORY_FACTOR = 2
"""The weights are in memory twice while a graph is opened: as they are in the file, and as the runtime arranges them."""
OURS = ("", "ai.onnx", "ai.onnx.ml")
OF_RUNTIME = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains of operators that ONNX Runtime adds; it says itself which of them it has."""


def read_structure(path: Path, shown: str) -> onnx.ModelProto:
    """Reads a graph without the weights that are in further files.

    Raises:
        ImportRefused: the file is damaged, truncated, too large or not a graph.
    """
    import onnx

    if path.stat().st_size > MAX_BYTES:
        raise _too_large(path.stat().st_size, shown)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's DecodeError, or what its parser meets
        raise damaged(shown, "not a complete ONNX file, since it cannot be parsed") from None
    if not model.graph.node or not model.opset_import or not model.graph.output:
        raise damaged(shown, "not a complete ONNX file, since it has no nodes, outputs or opset")
    return model


def external_files(model: onnx.ModelProto, shown: str) -> list[str]:
    """Returns the names of the files that hold weights of a graph, relative to its folder, sorted.

    Raises:
        ImportRefused: a name is absolute, or leads out of the folder.
    """
    found = set()
    for tensor in _tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL:
            name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
            parts = PurePosixPath(name).parts
            is_outside = PurePosixPath(name).is_absolute() or bool(PureWindowsPath(name).drive) or ".." in parts
            if not name or is_outside or "\\" in name:
                raise ImportRefused(
                    f"{shown} names the file {name!r} for the weight {tensor.name!r}; weights have to be in the graph's folder",
                    where="model.source",
                    hint="save the graph with its weights inside: onnx.save(onnx.load(PATH), NEW_PATH)",
                )
            found.add(PurePosixPath(name).as_posix())
    return sorted(found)


def load_weights(model: onnx.ModelProto, folder: Path, shown: str) -> None:
    """Reads the weights in further files of `folder` into the graph.

    Raises:
        ImportRefused: a file is missing or shorter than the graph says.
    """
    from onnx.external_data_helper import load_external_data_for_model

    names = external_files(model, shown)
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    for tensor in _tensors(model.graph):
        if tensor.data_location == tensor.EXTERNAL:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            name = PurePosixPath(entries["location"]).as_posix()
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
            if name not in sizes or end > sizes[name] or sizes[name] == 0:
                missing = "is missing" if name not in sizes else f"is truncated: {sizes[name]:,} bytes, {end:,} are needed"
                raise ImportRefused(
                    f"the file {name} with weights of {shown} {missing}", where="model.source", hint="copy both files again"
                )
    if names:
        load_external_data_for_model(model, str(folder))


def require_memory(sizes: int, memory: int, shown: str) -> None:
    """Refuses a model before it is loaded, if it cannot be opened on this machine.

    Args:
        sizes: bytes of the graph and of its further files.
        memory: bytes that the machine has.

    Raises:
        ImportRefused: it is larger than ONNX's format or the memory allows.
    """
    if sizes > MAX_BYTES:
        raise _too_large(sizes, shown)
    if MEMORY_FACTOR * sizes > memory:
        raise ImportRefused(
            f"{shown} has {sizes / 1e6:,.1f} MB of weights; to open it takes about {MEMORY_FACTOR * sizes / 1e6:,.1f} MB, and "
            f"{memory / 1e6:,.1f} MB of memory are free",
            where="model.source",
            hint="use a machine with more memory, or quantize the model: onnxruntime.quantization.quantize_dynamic",
        )


def check_operators(model: onnx.ModelProto, shown: str) -> None:
    """Refuses opsets and operators that ONNX Runtime does not have.

    Raises:
        ImportRefused: with the names of the opset or of the operators.
    """
    import onnx
    from onnx.defs import has, onnx_opset_version

    versions = {opset.domain: opset.version for opset in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx"))
    newest = onnx_opset_version()
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        which = "older" if opset < OLDEST_OPSET else "newer"
        raise ImportRefused(
            f"{shown} has opset {opset}, which is {which} than those that are supported, {OLDEST_OPSET} to {newest}",
            where="model.source",
            hint="convert it: onnx.save(onnx.version_converter.convert_version(onnx.load(PATH), 18), NEW_PATH)",
        )
    if model.ir_version > onnx.IR_VERSION:
        raise ImportRefused(
            f"{shown} has IR version {model.ir_version}, and versions up to {onnx.IR_VERSION} are known",
            where="model.source",
            hint="export it with an older version of ONNX",
        )
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    unknown = sorted(
        {
            f"{node.domain or 'ai.onnx'}::{node.op_type}"
            for node in nodes
            if (node.domain, node.op_type) not in functions
            and node.domain not in OF_RUNTIME
            and not (node.domain in OURS and has(node.op_type, "" if node.domain == "ai.onnx" else node.domain))
        }
    )
    if unknown:
        raise ImportRefused(
            f"{shown} uses operators that ONNX Runtime does not have: {', '.join(unknown)}",
            where="model.source",
            hint="export the model without custom operators; libraries with operators of their own are not loaded",
        )


def _too_large(size: int, shown: str) -> ImportRefused:
    return ImportRefused(
        f"{shown} has {size / 1e9:,.2f} GB, and an imported model can have at most {MAX_BYTES / 1e9:,.2f} GB",
        where="model.source",
        hint="quantize it, for example by onnxruntime.quantization.quantize_dynamic",
    )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a graph and of the graphs within its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _tensors(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _nodes(inner)

"""Recognises the format of a model's file, and refuses those whose loading runs code of the file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Literal

from headrace.importing.errors import ImportRefused

Format = Literal["onnx", "skops", "xgboost", "lightgbm", "gguf"]
SUPPORTED = (
    "ONNX (.onnx), scikit-learn by skops (.skops), XGBoost (.json, .ubj), LightGBM (.txt), "
    "and language models for llama.cpp (.gguf)"
)
ENDINGS: dict[str, Format] = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".ubj": "xgboost",
    ".json": "xgboost",
    ".txt": "lightgbm",
    ".gguf": "gguf",
}
OF_MODELS = (".onnx", ".skops", ".ubj", ".gguf")
"""Endings that models alone have; others, such as .json, need not be one."""
SKOPS = 'import skops.io; skops.io.dump(model, "model.skops")'
TORCH = (
    'import torch; torch.onnx.export(model.eval(), (example,), "model.onnx", input_names=["x"], '
    'dynamic_shapes=({0: torch.export.Dim("rows")},), dynamo=True, external_data=False)'
)
PROGRAM = 'import torch; torch.onnx.export(torch.export.load("model.pt2"), dynamo=True).save("model.onnx")'
SCRIPT = (
    'import torch; torch.onnx.export(torch.jit.load("model.pt"), (example,), "model.onnx", input_names=["x"], '
    'dynamic_axes={"x": {0: "rows"}}, dynamo=False)'
)
KERAS = 'model.export("model.onnx", format="onnx")'
PICKLED = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"), SKOPS),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".mar"), TORCH),
}
"""Endings of files that hold Python's pickle, with the code that writes the same model in a format without it."""
UNSUPPORTED = {
    ".safetensors": "safetensors hold weights without the network that computes with them; where the model is, write ONNX: "
    + TORCH,
    **dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), f"where the model is, write ONNX: {KERAS}"),
    **dict.fromkeys((".cbm",), 'where the model is, write ONNX: model.save_model("model.onnx", format="onnx")'),
    **dict.fromkeys((".pmml", ".mlmodel", ".engine", ".plan"), f"supported are {SUPPORTED}"),
}


def format_of(path: Path, shown: str) -> Format:
    """Returns the format of a model's file, by its content where that tells it and else by its ending.

    Args:
        shown: the address of the file, for errors.

    Raises:
        ImportRefused: the file is empty, holds a pickle, or is in no supported format.
    """
    ending = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ImportRefused(f"{shown} is empty", where="model.source", hint="copy or export the file again")
    if (code := _code_to_run(path, head)) is not None:
        what, converted = code
        raise ImportRefused(
            f"{shown} holds {what}, whose loading runs code that the file contains; it is not opened",
            where="model.source",
            hint=f"where you trust the file, write the model without code: {converted}",
        )
    if ending in UNSUPPORTED:
        raise ImportRefused(f"{shown}: the format {ending} is not supported", where="model.source", hint=UNSUPPORTED[ending])
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"tree\n") and b"version=" in head:
        return "lightgbm"
    if (names := _names_in_zip(path)) is not None:
        return _format_of_zip(names, shown)
    if ending == ".json" and not _is_xgboost(path):
        raise ImportRefused(f"{shown} is not a model of XGBoost", where="model.source", hint=f"supported are {SUPPORTED}")
    if ending in ENDINGS and ENDINGS[ending] not in ("skops", "lightgbm"):
        return ENDINGS[ending]
    if ending in ENDINGS:
        reason = "is damaged or truncated" if ending == ".skops" else "is not a model of LightGBM"
        raise ImportRefused(f"{shown} {reason}", where="model.source", hint=f"copy the file again; supported are {SUPPORTED}")
    raise ImportRefused(
        f"{shown}: unknown format {ending or 'without an ending'}", where="model.source", hint=f"supported are {SUPPORTED}"
    )


def _code_to_run(path: Path, head: bytes) -> tuple[str, str] | None:
    """Returns what a file holds if loading it runs code of the file, and the line that writes the same model without code."""
    ending, names = path.suffix.lower(), _names_in_zip(path) or []
    inner = {name.partition("/")[2] for name in names}  # torch puts all into one folder
    if "constants.pkl" in inner:
        return "a TorchScript program", SCRIPT
    if "archive_format" in inner or ending == ".pt2":
        return "a program of torch.export", PROGRAM
    is_pickle = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if ending in PICKLED or is_pickle or any(name.endswith((".pkl", ".pickle")) for name in names):
        return "a Python pickle", PICKLED.get(ending, SKOPS)
    return None


def _names_in_zip(path: Path) -> list[str] | None:
    """The names of the files in a zip; None for another file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # the second: a version of zip that Python cannot read
        return None


def _format_of_zip(names: list[str], shown: str) -> Format:
    if "schema.json" in names:
        return "skops"
    raise ImportRefused(
        f"{shown} is an archive without a model of skops", where="model.source", hint=f"supported are {SUPPORTED}"
    )


def _is_xgboost(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "learner" in found

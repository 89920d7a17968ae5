"""The files of an exported model that go to the registry and into the bento, and the hash over them."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from headrace.tracking.provenance import sha256

GRAPH, CONTRACT = "model.onnx", "contract.json"
"""Files that every exported model has."""
PATTERNS = ("*.onnx", "*.onnx.data", "*.npz", CONTRACT, "tokenizer.json", "served_*")
"""Names of served files; further files of a custom task type are named `served_…`."""


def served_parts(folder: Path) -> list[Path]:
    """The served files in `folder`, sorted by name."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(path for path in files if any(fnmatch(path.name, pattern) for pattern in PATTERNS))


def content_hash(folder: Path) -> str:
    """sha256 over all served files in `folder`: graphs, contract, tokenizer."""
    return sha256(*served_parts(folder))

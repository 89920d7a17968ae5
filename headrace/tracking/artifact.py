"""The served artifact: which files of a folder go to the registry, into the bento, and into the hash of what is served."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

GRAPH, CONTRACT = "model.onnx", "contract.json"
"""What every served artifact has."""
PATTERNS = ("*.onnx", "*.onnx.data", "*.npz", CONTRACT, "tokenizer.json", "served_*")
"""Names of served files; a kind of one's own calls what else it needs `served_…`."""


def served_parts(folder: Path) -> list[Path]:
    """The served files in `folder`, sorted by name."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(path for path in files if any(fnmatch(path.name, pattern) for pattern in PATTERNS))

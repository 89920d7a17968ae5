"""The files of an exported model that go to the registry and into the bento, and the hash over them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from headrace.errors import RegistryError
from headrace.tracking.provenance import sha256

GRAPH, CONTRACT = "model.onnx", "contract.json"
"""Files that every exported model has."""
IMPORT_FACTS = "import.json"
"""What was found out about a model that others trained, beside its graph; it is not served."""
PATTERNS = ("*.onnx", "*.onnx.data", "*.npz", CONTRACT, "tokenizer.json", "served_*")
"""Names of served files; further files of a custom task type are named `served_…`."""


def served_parts(folder: Path) -> list[Path]:
    """The served files in `folder`, sorted by name."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(path for path in files if any(fnmatch(path.name, pattern) for pattern in PATTERNS))


def content_hash(folder: Path) -> str:
    """sha256 over all served files in `folder`: graphs, contract, tokenizer."""
    return sha256(*served_parts(folder))


def hash_of_parts(parts: Mapping[str, bytes]) -> str:
    """The `content_hash` of a folder with these files, by their names."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        digest.update(parts[name])
    return digest.hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each served file in `folder`, by its name."""
    return {path.name: sha256(path) for path in served_parts(folder)}


def model_changed(
    name: str, folder: Path, expected: str, hint: str, expected_files: Mapping[str, str] | None = None
) -> RegistryError:
    """The error for served files in `folder` that are not those of the version `name`.

    Args:
        expected: the content hash that the files should have.
        hint: the way on.
        expected_files: the sha256 that each file should have, where that is known: the error names those that differ.
    """
    found = file_hashes(folder)
    known = expected_files or {}
    changed = [file for file in sorted({*found, *known}) if found.get(file) != known.get(file)] if known else sorted(found)
    files, now = ", ".join(changed) or "the files", content_hash(folder)
    return RegistryError(
        f"{files} of {name} changed: the served files have sha256 {now[:12]}…, and {expected[:12]}… was registered",
        where=str(folder / changed[0]) if len(changed) == 1 else str(folder),
        hint=hint,
    )

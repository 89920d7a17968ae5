"""The files of an exported model that go to the registry and into the bento, and the hash over them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from headrace.errors import RegistryError
from headrace.tracking.provenance import sha256

GRAPH, LANGUAGE_MODEL, CONTRACT = "model.onnx", "model.gguf", "contract.json"
"""Files of exported models: a graph, or a language model for llama.cpp, and the contract."""
IMPORT_FACTS = "import.json"
"""What was found out about a model that others trained, beside its graph; it is not served."""
BLOCK_BYTES = 1 << 20
PATTERNS = ("*.onnx", "*.onnx.data", "*.gguf", "*.npz", CONTRACT, "tokenizer.json", "served_*")
"""Names of served files; further files of a custom task type are named `served_…`."""


def served_parts(folder: Path) -> list[Path]:
    """The served files in `folder`, sorted by name."""
    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(path for path in files if any(fnmatch(path.name, pattern) for pattern in PATTERNS))


def model_file(folder: Path) -> Path:
    """The file with the weights in the folder of an exported model, whether or not it exists."""
    language = folder / LANGUAGE_MODEL
    return language if language.is_file() else folder / GRAPH


def content_hash(folder: Path) -> str:
    """sha256 over all served files in `folder`: graphs, contract, tokenizer."""
    return sha256(*served_parts(folder))


def hash_of_parts(parts: Mapping[str, bytes | Path]) -> str:
    """The `content_hash` of a folder with these files, by their names; a large one is given by its path."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        part = parts[name]
        if isinstance(part, bytes):
            digest.update(part)
        else:
            with part.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
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

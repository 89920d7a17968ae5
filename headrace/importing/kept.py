"""The imported model of a recipe, as it is kept in `data/<recipe>/model/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.files import read_json
from headrace.project import MODEL_RECORD, Project


@dataclass(frozen=True)
class Kept:
    """An imported model that is kept with the data of its recipe."""

    file: Path
    record: dict[str, Any]


def kept_model(name: str, project: Project) -> Kept | None:
    """The model that is kept for a recipe; None if there is none, or a part of it is missing.

    Raises:
        DamagedFile: its record is not JSON.
    """
    folder = project.imported_model(name)
    record = read_json(folder / MODEL_RECORD, "remove the folder; the model is fetched again")
    if not record or not all((folder / file).is_file() for file in record["files"]):
        return None
    return Kept(folder / record["files"][0], record)

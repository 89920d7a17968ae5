"""What a version was made from, kept beside its run: the recipe's text, code that is in no commit, and the data's hashes."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from headrace.data.versions import DataVersion, file_hashes
from headrace.errors import RegistryError
from headrace.plugins import code_files, custom_sources
from headrace.project import Project
from headrace.recipe.recipe import Recipe
from headrace.tracking import provenance
from headrace.tracking.provenance import Changes
from headrace.tracking.runs import client, registry_errors

FOLDER = "source"
"""In the run's artifacts, with a folder for each digest; and in the bento."""
RECIPE, DATA, CODE = "recipe.yaml", "data.json", "code.json"
MOST_NAMED = 10
"""Files that are named in the tag `uncommitted`."""


@dataclass(frozen=True)
class Sources:
    """Files by their path: `recipe.yaml`, `data.json`, `code.json`, and `code/PATH` for each file that is in no commit."""

    files: dict[str, bytes]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over all files."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()[:16]

    @property
    def recipe(self) -> bytes:
        """The text of the recipe."""
        return self.files[RECIPE]

    @property
    def data(self) -> dict[str, Any]:
        """`md5` and `rows` of the version, `files` with the md5 of each file of `data/<recipe>`, and the text of `data.dvc`."""
        found: dict[str, Any] = json.loads(self.files[DATA])
        return found

    @property
    def changes(self) -> Changes:
        """How the code and the recipe differed from the commit."""
        found = json.loads(self.files[CODE])
        return Changes(found["commit"], tuple(found["changed"]), tuple(found["removed"]))

    def apply_code(self, folder: Path) -> None:
        """Turns the commit's files in `folder` into those that the version was made from."""
        for path in self.changes.removed:
            (folder / path).unlink(missing_ok=True)
        for name, content in self.files.items():
            if name.startswith("code/"):
                _write(folder / name.removeprefix("code/"), content)


def named(paths: list[str]) -> str:
    """The paths in one line, at most `MOST_NAMED` of them."""
    more = len(paths) - MOST_NAMED
    return ", ".join(paths[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def collect(recipe: Recipe, version: DataVersion, project: Project) -> Sources:
    """Reads what the model that was trained last was made from. Outside of git that is all of the code."""
    recipe_file = project.recipes / f"{recipe.name}.yaml"
    custom = [file for source in custom_sources(recipe.custom_classes, project.root) for file in code_files(source)]
    changes = provenance.changes(project, [recipe_file, *custom])
    pointer = project.root / "data.dvc"
    data = {
        "md5": version.md5,
        "rows": version.rows,
        "files": file_hashes(project, version.recipe),
        "data_dvc": pointer.read_text(encoding="utf-8") if pointer.is_file() else None,
    }
    files = {RECIPE: recipe_file.read_bytes(), DATA: _json(data), CODE: _json(asdict(changes))}
    return Sources(files | {f"code/{path}": (project.root / path).read_bytes() for path in changes.changed})


def log(run_id: str, sources: Sources, project: Project) -> None:
    """Stores the files with a run in MLflow. The same files again change nothing.

    Raises:
        RegistryError: MLflow's database or artifacts cannot be written.
    """
    with registry_errors(project), tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        for name, content in sources.files.items():
            _write(Path(folder) / name, content)
        client(project).log_artifacts(run_id, folder, f"{FOLDER}/{sources.digest}")


def load(run_id: str, digest: str | None, project: Project, elsewhere: Iterable[Path] = ()) -> Sources | None:
    """The files of a version; None for one without: it was registered by an older Headrace.

    Args:
        digest: the tag `source` of the version.
        elsewhere: folders that may hold the same files, if the run was deleted.

    Raises:
        RegistryError: the version has them, and they are gone or damaged.
    """
    if digest is None:
        return None
    for found in (_logged(run_id, digest, project), *map(_read, elsewhere)):
        if found is not None and found.digest == digest:
            return found
    raise RegistryError(
        f"what the version was made from is gone: {FOLDER}/{digest} of run {run_id}",
        where=str(project.mlruns / "artifacts"),
        hint="restore mlruns/ from a backup",
    )


def _logged(run_id: str, digest: str, project: Project) -> Sources | None:
    import mlflow

    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        client(project)
        try:
            uri = f"runs:/{run_id}/{FOLDER}/{digest}"
            return _read(Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=project.tracking_uri)))
        except Exception:  # the run or its files are gone, which every store reports by an error of its own
            return None


def _read(folder: Path) -> Sources | None:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return Sources(files) if {RECIPE, DATA, CODE} <= files.keys() else None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

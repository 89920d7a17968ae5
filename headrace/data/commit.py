"""How a table becomes a part of the data: validated first, then written beside, renamed into place, and tracked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.chunks import Chunks
from headrace.data.validation.quarantine import quarantine
from headrace.data.tables import to_frame, write_batch
from headrace.data.versions import track
from headrace.errors import Busy, DataRejected
from headrace.files import whole
from headrace.project import Project
from headrace.data.validation.validate import ValidationReport, validate

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe

Report = Callable[[str], None]
LOCK_SECONDS = 900.0
"""Longest wait for another process that changes the same data; a fetch may take that long."""


@contextmanager
def changing(project: Project, what: str) -> Iterator[None]:
    """One process at a time changes `what`; the system frees the lock of a process that dies.

    Raises:
        Busy: another one still does after `LOCK_SECONDS`.
    """
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    path = project.locks / f"{what}.lock"
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise Busy(
            f"another process changes the {what} at this moment",
            where=str(path),
            hint="wait until it ends, then run the same command",
        ) from None


def validate_or_quarantine(
    table: pa.Table | Chunks,
    recipe: Recipe,
    project: Project,
    batch_name: str,
    file: Path | None = None,
    known_labels: Sequence[Any] | None = None,
) -> ValidationReport:
    """The report of a table that may land.

    Raises:
        DataRejected: it may not; it lies in quarantine, and the data version stays as it was.
    """
    frame = table if isinstance(table, Chunks) else to_frame(table)
    found = validate(frame, recipe, project, batch_name, known_labels)
    found.to_json(project.validation_report(recipe.name))
    if found.success:
        return found
    folder = quarantine(found, frame, project, file)
    try:
        found.raise_if_failed(_mend(recipe, project, folder, file))
    except DataRejected as error:
        raise DataRejected(f"{error.message}\n  in quarantine: {folder}", where=error.where, hint=error.hint) from None
    raise AssertionError("a report without success raises")


def land(table: pa.Table, project: Project, recipe: Recipe, name: str, key: str | None = None) -> None:
    """Puts `table` into `data/<recipe>/<name>` and tracks the new version. Killed at any instant, either nothing has
    changed or the file is there whole, and `track` (each later run calls it) completes the version.

    Raises:
        DiskFull, Busy: nothing has changed.
    """
    staged = incoming(project, recipe, name)
    with whole(staged) as beside:
        write_batch(table, beside, key)
    put(staged, project, recipe, name)


def incoming(project: Project, recipe: Recipe, name: str) -> Path:
    """Where a batch is written first: outside data/, where DVC would see a half-written file."""
    staged = project.state / "incoming" / f"{recipe.name}-{name}"
    for left in staged.parent.glob(f".{staged.name}.*.part"):  # of a run that was killed
        left.unlink(missing_ok=True)
    return staged


def put(staged: Path, project: Project, recipe: Recipe, name: str) -> None:
    """Moves a whole file to `data/<recipe>/<name>` and tracks the new version.

    Raises:
        DiskFull, Busy: nothing has changed, and the file is gone.
    """
    target = project.raw(recipe.name) / name
    is_new = not target.exists()
    with changing(project, "data"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
            _sync(target.parent)
            track(project)
        except BaseException:
            staged.unlink(missing_ok=True)
            if is_new:  # the version before stands
                target.unlink(missing_ok=True)
            raise


def _mend(recipe: Recipe, project: Project, folder: Path, file: Path | None) -> str:
    rows = " (the rows: failing_rows.csv there)" if (folder / "failing_rows.csv").is_file() else ""
    again = f"headrace data add {recipe.name} {file}" if file else f"headrace run {recipe.name}"
    return f"correct the data{rows} or `expect` in recipes/{recipe.name}.yaml, then: {again}"


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Adds a table to the data: it is validated, written to a temporary file, renamed into place, and tracked by DVC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.data.chunks import Chunks
from headrace.data.tables import to_frame, write_batch
from headrace.data.validation.quarantine import quarantine
from headrace.data.validation.validate import Failure, ValidationReport, validate
from headrace.data.versions import track
from headrace.errors import Busy, DataRejected
from headrace.files import atomic_write, sync_folder
from headrace.project import Project

if TYPE_CHECKING:
    import pyarrow as pa

    from headrace.recipe.recipe import Recipe

LOCK_SECONDS = 900.0
"""Longest wait for another process that changes the same data; fetching a source may take that long."""


@contextmanager
def exclusive(project: Project, name: str) -> Iterator[None]:
    """Holds the lock `name`, so that one process at a time changes that data. The system frees the lock of a process that
    dies.

    Raises:
        Busy: another process still holds it after `LOCK_SECONDS`.
    """
    from filelock import FileLock, Timeout

    project.locks.mkdir(parents=True, exist_ok=True)
    path = project.locks / f"{name}.lock"
    try:
        with FileLock(path, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise Busy(
            f"another process is changing {name}",
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
    further: Sequence[Failure] = (),
) -> ValidationReport:
    """Returns the report of a table that passes validation.

    Args:
        further: failures of checks besides the expectations.

    Raises:
        DataRejected: it failed and was moved to quarantine; the data version is unchanged.
    """
    frame = table if isinstance(table, Chunks) else to_frame(table)
    report = validate(frame, recipe, project, batch_name, known_labels)
    if further:
        failures = [*report.failures, *further]
        report = report.model_copy(update={"success": False, "total": report.total + len(further), "failures": failures})
    report.to_json(project.validation_report(recipe.name))
    if report.success:
        return report
    folder = quarantine(report, frame, project, file)
    try:
        report.raise_if_failed(_hint(recipe, folder, file, "`expect` or `data.drift`" if further else "`expect`"))
    except DataRejected as error:
        raise DataRejected(f"{error.message}\n  in quarantine: {folder}", where=error.where, hint=error.hint) from None
    raise AssertionError("a report without success raises")


def commit_batch(table: pa.Table, project: Project, recipe: Recipe, name: str, key: str | None = None) -> None:
    """Writes `table` to `data/<recipe>/<name>` and tracks the new version. After a kill at any instant either nothing has
    changed, or the complete file is in place and the next `track` (every later run calls it) completes the version.

    Raises:
        DiskFull, Busy: nothing has changed.
    """
    staged = staging_path(project, recipe, name)
    with atomic_write(staged) as temporary:
        write_batch(table, temporary, key)
    move_into_place(staged, project, recipe, name)


def staging_path(project: Project, recipe: Recipe, name: str) -> Path:
    """Returns where a batch is written first: outside of data/, where DVC would see a half-written file."""
    staged = project.state / "incoming" / f"{recipe.name}-{name}"
    for leftover in staged.parent.glob(f".{staged.name}.*.part"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    return staged


def move_into_place(staged: Path, project: Project, recipe: Recipe, name: str) -> None:
    """Moves a complete file to `data/<recipe>/<name>` and tracks the new version.

    Raises:
        DiskFull, Busy: nothing has changed, and the staged file is removed.
    """
    target = project.raw_data(recipe.name) / name
    is_new = not target.exists()
    with exclusive(project, "data"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
            sync_folder(target.parent)
            track(project)
        except BaseException:
            staged.unlink(missing_ok=True)
            if is_new:  # keep the previous version
                target.unlink(missing_ok=True)
            raise


def _hint(recipe: Recipe, folder: Path, file: Path | None, fields: str) -> str:
    rows = " (failing rows: failing_rows.csv in quarantine)" if (folder / "failing_rows.csv").is_file() else ""
    again = f"headrace data add {recipe.name} {file}" if file else f"headrace run {recipe.name}"
    return f"correct the data{rows} or {fields} in recipes/{recipe.name}.yaml, then: {again}"

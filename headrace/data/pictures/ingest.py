"""Ingests pictures: the first batch from the recipe's source, and later ones from a folder, an archive or a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.console import Report
from headrace.data.commit import move_into_place, staging_path, validate_or_quarantine
from headrace.data.pictures.listing import Listing, list_pictures
from headrace.data.pictures.shards import PICTURES_KEY, Written, write_pictures
from headrace.data.tables import KEY, batch_files, check_types, stored_schema
from headrace.errors import DataError
from headrace.files import atomic_write
from headrace.recipe.recipe import Recipe

if TYPE_CHECKING:
    from headrace.data.validation.validate import ValidationReport
    from headrace.project import Project

SHOWN = 10
"""Paths that a message lists."""
MOST_BROKEN = 0.5
"""With a larger share of broken pictures the source is refused."""


def write_batch_of_pictures(
    listings: list[Listing],
    recipe: Recipe,
    project: Project,
    name: str,
    report: Report,
    *,
    title: str,
    key: Callable[[Written], str | None],
    check: Callable[[Written], None] = lambda written: None,
    known_labels: Sequence[Any] | None = None,
) -> ValidationReport:
    """Reads and checks pictures, writes them as one file, validates their table (without the bytes), and moves the file to
    `data/<recipe>/<name>`.

    Args:
        title: names the batch in the validation report.
        key: returns the key of the source that is stored with the batch.
        check: raises an error if the batch is not to be added.

    Raises:
        DataError: no picture can be read, most are broken, or any is with `data.image.broken: refuse`.
        DataRejected: the table failed validation; the data version is unchanged.
        DiskFull, Busy: nothing has changed.
    """
    staged = staging_path(project, recipe, name)
    where = str(listings[0].container.place)
    try:
        with atomic_write(staged) as temporary:
            written = write_pictures(listings, temporary, Path(where).name, lambda found: _metadata(key(found)))
        _report_left_out(listings, written, recipe, report, where)
        check(written)
        validation = validate_or_quarantine(written.rows, recipe, project, title, None, known_labels)
        report(validation.summary)
        move_into_place(staged, project, recipe, name)
        return validation
    finally:
        staged.unlink(missing_ok=True)


def _metadata(key: str | None) -> dict[str, str]:
    return {KEY: key} if key else {}


def _report_left_out(listings: list[Listing], written: Written, recipe: Recipe, report: Report, where: str) -> None:
    """
    Raises:
        DataError: as `write_batch_of_pictures`.
    """
    assert recipe.data.pictures is not None
    left_out = {path: why for listing in listings for path, why in listing.left_out.items()} | written.broken
    ignored = [name for listing in listings for name in listing.ignored]
    if ignored:
        names = ", ".join(ignored[:3]) + (", …" if len(ignored) > 3 else "")
        report(f"{len(ignored):,} other file{'s' if len(ignored) > 1 else ''} ignored: {names}")
    if not left_out:
        return
    total = len(left_out) + written.rows.num_rows
    message = f"{len(left_out):,} of {total:,} pictures cannot be used:\n{_shown(left_out)}"
    if recipe.data.pictures.broken == "refuse":
        raise DataError(
            message, where=where, hint="replace or remove these files; or set data.image.broken: drop to leave them out"
        )
    if len(left_out) > MOST_BROKEN * total:
        raise DataError(message, where=where, hint="correct data.source, or the files; most of them have to be readable")
    report(message.replace("cannot be used", "left out"))


def _shown(left_out: dict[str, str]) -> str:
    paths = sorted(left_out)
    lines = [f"    {path}: {left_out[path]}" for path in paths[:SHOWN]]
    return "\n".join([*lines, *([f"    and {len(paths) - SHOWN:,} more"] if len(paths) > SHOWN else [])])


def listing_of_batch(file: Path, recipe: Recipe, project: Project) -> Listing:
    """Lists the pictures of a later batch: a folder or archive with a folder for each class, or a table of paths.

    Raises:
        DataError: it cannot be read, or has not the columns of the existing batches.
    """
    data = recipe.data
    if data.parts:
        raise DataError(
            f"the source has the parts {', '.join(data.parts)}, and a file of pictures does not say to which it belongs",
            where=str(file),
            hint="add the pictures to one of the sources in data.source, then: headrace run " + recipe.name,
        )
    listing = list_pictures(file, data, None, None)
    schema = stored_schema(project, recipe.name)
    assert schema is not None
    import pyarrow as pa

    wanted = pa.schema([field for field in schema if field.name in listing.rows.column_names])
    check_types(listing.rows, wanted, file)
    listing.rows = listing.rows.cast(pa.schema([wanted.field(name) for name in listing.rows.column_names]))
    return listing


def refuse_duplicate(written: Written, recipe: Recipe, project: Project, file: Path) -> None:
    """
    Raises:
        DataError: an existing batch has exactly these pictures and labels.
    """
    import pyarrow.parquet as pq

    for path in batch_files(project, recipe.name):
        if (pq.read_metadata(path).metadata or {}).get(PICTURES_KEY.encode()) == written.digest.encode():
            raise DataError(
                f"these pictures were already added as batch {path.name}",
                where=str(file),
                hint="nothing to do; or add other pictures",
            )

"""Where refused batches lie: the file, the report, the rows that failed, and the way to Data Docs."""

from __future__ import annotations

import html
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.data.chunks import Chunks
from headrace.data.validation.chunked import rows_at
from headrace.errors import DiskFull
from headrace.project import Project
from headrace.data.validation.validate import ValidationReport

if TYPE_CHECKING:
    import pandas as pd

ROWS_KEPT = 10_000
"""Failing rows written out; the report counts all."""


def quarantine(report: ValidationReport, table: pd.DataFrame | Chunks, project: Project, file: Path | None = None) -> Path:
    """Puts a refused batch aside and returns its folder: a copy of `file`, `report.json`, `failing_rows.csv` (the column
    `row` counts from 1), and `data_docs.html`, which leads to the page in Data Docs.

    Raises:
        DiskFull: no space is left; the batch is refused all the same.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder = project.quarantine / report.recipe / f"{stamp}-{slug(report.batch)}"
    beside = folder.with_name(f".{folder.name}.part")
    try:
        beside.mkdir(parents=True)
        if file is not None:
            shutil.copy2(file, beside / file.name)
        rows = report.failing_rows[:ROWS_KEPT]
        if rows:
            failing = rows_at(table, rows) if isinstance(table, Chunks) else table.reset_index(drop=True).iloc[rows]
            failing.insert(0, "row", [row + 1 for row in rows], allow_duplicates=True)
            failing.to_csv(beside / "failing_rows.csv", index=False)
        page = html.escape(Path(report.docs).as_uri())
        (beside / "data_docs.html").write_text(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={page}">\n'
            f'<a href="{page}">Data Docs</a>\n',
            encoding="utf-8",
        )
        report.to_json(beside / "report.json")
        beside.replace(folder)
    except OSError as error:
        from headrace.files import is_disk_full

        shutil.rmtree(beside, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                "the batch was refused, and no space is left to keep it",
                where=str(project.quarantine),
                hint="free some space, then run the same command to see why",
            ) from None
        raise
    return folder


def slug(name: str) -> str:
    """A name that is safe in a path: letters, digits and dashes."""
    stem = re.sub(r"(\.(csv|tsv|tab|parquet|pq|gz|zip))+$", "", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:60] or "batch"

"""Quarantine for refused batches: the file, the report, the rows that failed, and a link to Data Docs."""

from __future__ import annotations

import html
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.data.chunks import Chunks
from headrace.data.validation.chunked import read_rows
from headrace.data.validation.validate import ValidationReport
from headrace.errors import DiskFull
from headrace.files import is_disk_full, safe_filename, sync_folder
from headrace.project import Project

if TYPE_CHECKING:
    import pandas as pd

MAX_FAILING_ROWS = 10_000
"""Failing rows that are written; the report counts all."""


def quarantine(report: ValidationReport, table: pd.DataFrame | Chunks, project: Project, file: Path | None = None) -> Path:
    """Keeps a refused batch and returns its folder: a copy of `file`, `report.json`, `failing_rows.csv` (the column `row`
    counts from 1), and `data_docs.html`, which opens the page in Data Docs.

    Raises:
        DiskFull: no space is left to keep it. The batch is refused all the same.
    """
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder = project.quarantine / report.recipe / f"{stamp}-{safe_filename(report.batch)}"
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        temporary.mkdir(parents=True)
        if file is not None:
            shutil.copy2(file, temporary / file.name)
        rows = report.failing_rows[:MAX_FAILING_ROWS]
        if rows:
            failing = read_rows(table, rows) if isinstance(table, Chunks) else table.reset_index(drop=True).iloc[rows]
            failing.insert(0, "row", [row + 1 for row in rows], allow_duplicates=True)
            failing.to_csv(temporary / "failing_rows.csv", index=False)
        page = html.escape(Path(report.docs).as_uri())
        (temporary / "data_docs.html").write_text(
            f'<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={page}">\n'
            f'<a href="{page}">Data Docs</a>\n',
            encoding="utf-8",
        )
        report.to_json(temporary / "report.json")
        temporary.replace(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_disk_full(error):
            raise DiskFull(
                "the batch was refused, and no space is left to keep it in quarantine",
                where=str(project.quarantine),
                hint="free some space, then run the same command to see the reason",
            ) from None
        raise
    return folder

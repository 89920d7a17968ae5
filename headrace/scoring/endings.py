"""Names of results: they end as the format that the file has."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import UsageError
from headrace.scoring.rows import RowsFile
from headrace.spreadsheets import ENDINGS as WORKBOOKS

ENDINGS = {
    "text/csv": (".csv", ".tsv", ".tab", ".txt"),
    "application/x-ndjson": (".jsonl", ".ndjson"),
    "application/vnd.apache.parquet": (".parquet", ".pq"),
    "workbook": WORKBOOKS,
}
"""How the names of files of each format end."""


def check_ending(file: RowsFile, path: Path, output: Path, option: str) -> None:
    """Checks the name of the result of `file`, which is at `path`; `option` is the one that gives the name.

    Raises:
        UsageError: the output is the file itself, or its name is that of another format.
    """
    if output.exists() and path.exists() and output.samefile(path):
        raise UsageError("the output would replace the file", where=option, hint="use another name")
    given = next((kind for kind, endings in ENDINGS.items() if output.name.lower().endswith(endings)), None)
    if given is not None and given != file.media_type:
        ending = ENDINGS[file.media_type][0]
        message = f"the answers to {path.name} come as {ending[1:]}, not as {output.name}"
        raise UsageError(message, where=option, hint=f"{option} {output.with_suffix(ending)}")

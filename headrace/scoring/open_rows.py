"""Opens a file of rows by its content: Parquet, CSV, JSON lines, a workbook, or pictures."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

from headrace.runtime.contract import Contract
from headrace.scoring.columns import listed
from headrace.scoring.content import BOMS, archive_errors, content_of, unpacked
from headrace.scoring.delimited import DelimitedFile
from headrace.scoring.json_lines import JsonLinesFile
from headrace.scoring.parquet import ParquetFile
from headrace.scoring.pictures import PICTURES, PicturesFile, picture_field
from headrace.scoring.rows import JSON_LINES, PARQUET, BadFile, Others, RowsFile
from headrace.scoring.sheets import SheetFile

START_BYTES = 64 * 1024
TABLES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json")
"""Names of tables in a zip end like this."""


def open_rows(
    path: Path,
    contract: Contract,
    others: Others,
    declared: str = "",
    partitions: Mapping[str, str | int | None] | None = None,
) -> RowsFile:
    """Returns the file, after checking its columns.

    Args:
        declared: the media type that its sender gave; it decides only where the content does not.
        partitions: columns that the names of the folders of a Parquet file have.

    Raises:
        BadFile: it is of no known kind, damaged, or its columns are not those of the model.
    """
    if path.is_dir():
        return PicturesFile(path, contract)
    content = content_of(path)
    if content == "parquet":
        return ParquetFile(path, contract, others, partitions)
    if content == "workbook":
        return SheetFile(path, contract, others)
    if content == "zip":
        member = _table_in(path, contract)
        return PicturesFile(path, contract) if member is None else _open_text(path, contract, others, declared, member)
    return _open_text(path, contract, others, declared, None)


def _open_text(path: Path, contract: Contract, others: Others, declared: str, member: str | None) -> RowsFile:
    with unpacked(path, member) as handle:
        start = handle.peek(START_BYTES)[:START_BYTES]
    text = start
    for mark in BOMS:
        text = text.removeprefix(mark)
    if text.lstrip().startswith(b"{"):
        return JsonLinesFile(path, contract, others, member)
    try:
        return DelimitedFile(path, contract, others, member)
    except BadFile as error:
        if declared == PARQUET and error.code == "wrong_columns":
            raise BadFile("bad_parquet", "the file is not readable Parquet") from None
        if declared == JSON_LINES and error.code == "wrong_columns":  # every line gets its own error
            return JsonLinesFile(path, contract, others, member)
        raise


def _table_in(path: Path, contract: Contract) -> str | None:
    """Returns the name of the only table in a zip; None if it holds pictures.

    Raises:
        BadFile: it holds something else.
    """
    with archive_errors(), zipfile.ZipFile(path) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir() and "__MACOSX" not in info.filename]
    tables = [name for name in names if name.lower().endswith(TABLES)]
    if picture_field(contract) is not None and any(name.lower().endswith(PICTURES) for name in names):
        return None
    if len(tables) == 1:
        return tables[0]
    has = f"it has {listed(names)}" if names else "it is empty"
    raise BadFile("unknown_format", f"a zip holds one table ({', '.join(TABLES)}), or pictures for a model of images; {has}")

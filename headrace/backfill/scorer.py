"""Scores chunks: reads their rows, answers them by the model, and writes each chunk to a part with its manifest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.backfill.answering import Answerer
from headrace.backfill.plan import Chunk, Manifest, Plan, SourceFile, Work
from headrace.errors import DataError
from headrace.files import atomic_write, write_text
from headrace.runtime.contract import Contract
from headrace.scoring.open_rows import open_rows
from headrace.scoring.results import Summary
from headrace.scoring.rows import Chunk as Rows
from headrace.scoring.rows import Others, RowsFile


class Scorer:
    """Scores chunks of one backfill, best in ascending order: then each row of a file is read once."""

    def __init__(self, plan: Plan, work: Work, answerer: Answerer, contract: Contract) -> None:
        self._plan, self._work, self._answerer, self._contract = plan, work, answerer, contract
        self._chunks = list(plan.chunks())
        self._readers: dict[int, _Reader] = {}

    def score(self, number: int) -> Manifest:
        """Writes the part of a chunk, then its manifest.

        Raises:
            BadFile, DataError: the file cannot be read, or has other rows than before.
            DiskFull: no space is left.
        """
        chunk = self._chunks[number]
        reader = self._reader(chunk.file)
        summary = Summary()
        with atomic_write(self._work.part(number, self._plan.ending)) as beside:
            with beside.open("wb") as handle:
                writer = reader.file.writer(handle)
                for rows in reader.read(chunk):
                    lines = self._answerer.answer(rows.values, chunk.row + reader.taken)
                    for place, line in enumerate(lines):
                        summary.add(line, rows.places[place] if rows.places else None)
                    writer.write(rows, lines)
                    reader.taken += len(lines)
                writer.close()
            with beside.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
            size = beside.stat().st_size
        manifest = Manifest(
            index=number,
            rows=chunk.rows,
            sha256=digest,
            size=size,
            header=len(header_of(reader.file)),
            refusals=self._named(summary.refusals.to_list(), chunk),
            warnings=summary.unseen.to_dict(),
        )
        write_text(self._work.manifest_file(number), manifest.model_dump_json() + "\n")
        return manifest

    def _reader(self, index: int) -> _Reader:
        if index not in self._readers:
            self._readers.clear()  # of another file
            file = self._plan.files[index]
            self._readers[index] = _Reader(open_file(file, self._contract, self._plan.others), self._plan.group_rows)
        return self._readers[index]

    def _named(self, refusals: list[dict[str, Any]], chunk: Chunk) -> list[dict[str, Any]]:
        """Adds the name of the file to places, if there are several."""
        if len(self._plan.files) > 1:
            name = Path(self._plan.files[chunk.file].path).name
            for row in (row for one in refusals for row in one["rows"]):
                row["place"] = f"{name} {row['place'] or ''}".strip()
        return refusals


class _Reader:
    """Reads the rows of a file in groups that do not depend on where reading began."""

    def __init__(self, file: RowsFile, group_rows: int) -> None:
        self.file, self._group = file, group_rows
        self.taken = 0
        """Rows of the current chunk that were used."""
        self._at = -1
        self._groups: Iterator[Rows] = iter(())

    def read(self, chunk: Chunk) -> Iterator[Rows]:
        """Yields the rows of a chunk, in groups.

        Raises:
            DataError: the file ends before the last of them.
        """
        if self._at != chunk.first:
            self._groups, self._at = regrouped(self.file.chunks(chunk.first), self._group), chunk.first
        self.taken, left = 0, chunk.rows
        while left > 0:
            rows = next(self._groups, None)
            if rows is None:
                self._at = -1
                raise DataError(
                    f"the file has changed since the backfill began: {chunk.described} end {left:,} rows early",
                    hint="restore it, and run the same command; or start again: add --restart",
                )
            left -= len(rows.values)
            self._at += len(rows.values)
            yield rows


def regrouped(chunks: Iterator[Rows], size: int) -> Iterator[Rows]:
    """Yields the same rows in groups of `size`; the last one may have fewer."""
    values, pieces, places = list[Any](), list[Any](), list[str]()
    for chunk in chunks:
        at = 0
        while at < len(chunk.values):
            taken = min(size - len(values), len(chunk.values) - at)
            values += chunk.values[at : at + taken]
            places += chunk.places[at : at + taken]
            pieces.append(chunk.sources[at : at + taken])
            at += taken
            if len(values) == size:
                yield Rows(values, _joined(pieces), places)
                values, pieces, places = [], [], []
    if values:
        yield Rows(values, _joined(pieces), places)


def _joined(pieces: list[Any]) -> Any:
    """Lists of rows as one list, or batches of Arrow as one batch."""
    if isinstance(pieces[0], list):
        return [row for piece in pieces for row in piece]
    if len(pieces) == 1:
        return pieces[0]
    import pyarrow as pa

    return pa.concat_batches(pieces)


def open_file(file: SourceFile, contract: Contract, others: Others) -> RowsFile:
    """
    Raises:
        BadFile: the file is damaged, or its columns are not those of the model.
    """
    return open_rows(Path(file.path), contract, others, partitions=file.partitions)


def header_of(file: RowsFile) -> bytes:
    """Returns what the result has before its first row: the header of CSV."""
    if file.media_type != "text/csv":
        return b""
    handle = io.BytesIO()
    file.writer(handle).write(Rows([], []), [])
    return handle.getvalue()

"""Writes the pictures of a source into one Parquet file, in row groups of some megabytes, with the files' own bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.console import bar
from headrace.data.pictures.checks import check_picture
from headrace.data.pictures.listing import Listing, shuffled_order
from headrace.data.tables import PARQUET_OPTIONS
from headrace.errors import DataError
from headrace.recipe.pictures import HEIGHT, IMAGE, PATH, WIDTH
from headrace.runtime.images import InvalidImage

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

GROUP_BYTES = 32 * 2**20
"""Size of a row group."""
PICTURES_KEY = "headrace.pictures"
"""The key of the hash of all pictures and labels in a Parquet file's metadata."""


@dataclass
class Written:
    """What was written, and what was not."""

    rows: pa.Table
    """All columns but the bytes, in stored order."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that could not be read, by path, and why."""
    hashes: dict[str, str] = field(default_factory=dict)
    """sha256 of every file that was read from a folder, by its path on disk."""
    digest: str = ""
    """Hash of paths, labels and bytes of all pictures."""


def write_pictures(
    listings: list[Listing], to: Path, name: str, metadata: Callable[[Written], dict[str, str]] = lambda written: {}
) -> Written:
    """Writes the readable pictures of all listings to the Parquet file `to`; the bytes depend on paths, labels and files only.

    Holds one row group in memory.

    Args:
        name: shown while it runs.
        metadata: returns what is stored in the file's metadata, besides the hash of the pictures.

    Raises:
        DataError: an archive is damaged.
        OSError: the disk is full.
    """
    import pyarrow as pa

    total, done = sum(listing.rows.num_rows for listing in listings), 0
    with ExitStack() as stack, bar(f"reading {name}", total) as progress:
        writer: _Writer | None = None
        written = Written(pa.table({}))
        for listing in listings:
            schema = _schema(listing.rows.schema)
            if writer is None:
                writer, first = stack.enter_context(_Writer(to, schema)), schema
            elif schema != first:
                raise DataError(
                    "its columns or their types are not those of the first table of pictures",
                    where=str(listing.container.place),
                    hint="write labels of one type, and the same columns, in all tables",
                )
            for row, raw in _readable(listing, written):
                writer.add(row, raw)
                done += 1
                if done % 64 == 0:
                    progress.update(min(total, done + len(written.broken)))
        assert writer is not None, "a source has files"
        writer.flush()
        progress.update(total)
        written.rows, written.digest = writer.light_rows(), writer.digest()
        if not written.rows.num_rows:
            raise _none_readable(listings, written)
        writer.metadata = {PICTURES_KEY: written.digest, **metadata(written)}
    return written


def _none_readable(listings: list[Listing], written: Written) -> DataError:
    left_out = {path: why for listing in listings for path, why in listing.left_out.items()} | written.broken
    first = sorted(left_out)[:10]
    return DataError(
        f"none of {len(left_out):,} pictures can be used:\n" + "\n".join(f"  {path}: {left_out[path]}" for path in first),
        where=str(listings[0].container.place),
        hint="correct data.source, data.image.path or data.image.files in the recipe, or the files",
    )


def _schema(rows: pa.Schema) -> pa.Schema:
    import pyarrow as pa

    fields = [rows.field(PATH), pa.field(WIDTH, pa.int32()), pa.field(HEIGHT, pa.int32()), pa.field(IMAGE, pa.binary())]
    return pa.schema([*fields, *(rows.field(name) for name in rows.names if name != PATH)])


def _readable(listing: Listing, written: Written) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yields each readable picture with its row; the others are added to `written.broken`."""
    rows = listing.rows.to_pylist()
    order = shuffled_order([row[PATH] for row in rows])
    by_path: dict[str, list[dict[str, Any]]] = {}
    for i in order:
        by_path.setdefault(rows[i][PATH], []).append(rows[i])
    for path, raw in listing.container.read(list(by_path)):
        try:
            if isinstance(raw, InvalidImage):
                raise raw
            width, height = check_picture(raw)
        except InvalidImage as error:
            written.broken[path] = str(error)
            continue
        if listing.container.place.is_dir():
            written.hashes[str(listing.container.place / path)] = hashlib.sha256(raw).hexdigest()
        for row in by_path[path]:
            yield {**row, WIDTH: width, HEIGHT: height}, raw


class _Writer:
    """A Parquet file that grows by row groups."""

    def __init__(self, to: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._to = to
        self._rows: list[dict[str, Any]] = []
        self._light: list[pa.Table] = []
        self._bytes = 0
        self._hash = hashlib.sha256()
        self.metadata: dict[str, str] = {}

    def __enter__(self) -> _Writer:
        import pyarrow.parquet as pq

        plain = [name for name in self._schema.names if name != IMAGE]
        # Pictures are compressed already: another compression would cost time and save nothing.
        options: dict[str, Any] = {**PARQUET_OPTIONS, "compression": dict.fromkeys(plain, "zstd") | {IMAGE: "none"}}
        options["compression_level"] = dict.fromkeys(plain, 3)
        self._file = self._to.open("wb")
        dictionaries = [name for name in plain if name != PATH]
        self._writer: pq.ParquetWriter = pq.ParquetWriter(
            self._file, self._schema, write_statistics=plain, use_dictionary=dictionaries, **options
        )
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._writer.add_key_value_metadata(self.metadata)
            self._writer.close()
        else:
            self._writer.is_open = False  # otherwise it would write the footer when it is garbage-collected
        self._file.close()

    def add(self, row: dict[str, Any], raw: bytes) -> None:
        self._hash.update(repr(sorted(row.items())).encode() + hashlib.sha256(raw).digest())
        self._rows.append({**row, IMAGE: raw})
        self._bytes += len(raw)
        if self._bytes >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            group = pa.Table.from_pylist(self._rows, self._schema)
            self._writer.write_table(group, row_group_size=group.num_rows)
            self._light.append(group.drop_columns([IMAGE]))
        self._rows, self._bytes = [], 0

    def light_rows(self) -> pa.Table:
        import pyarrow as pa

        empty = self._schema.empty_table().drop_columns([IMAGE])
        return pa.concat_tables([empty, *self._light]).combine_chunks()

    def digest(self) -> str:
        return self._hash.hexdigest()

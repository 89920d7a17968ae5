"""Joins the parts of a backfill to one file, or to a folder of parts, completely or not at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from headrace.backfill.plan import Manifest, Plan, Work
from headrace.errors import DataError
from headrace.files import atomic_write, sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS, GROUP_BYTES = 64 * 1024, 32 * 1024 * 1024
"""Largest size of a group of rows in a Parquet file."""
COPY_BYTES = 1 << 20
READ_ROWS = 1000


def join(plan: Plan, work: Work, manifests: list[Manifest]) -> str:
    """Writes the result and returns its sha256; of a folder, that of the hashes of its parts in order.

    Raises:
        DataError: a part has changed; it is scored again by the same command.
        DiskFull: no space is left.
    """
    if plan.is_folder:
        return _move_folder(plan, work, manifests)
    _require_all_written(plan, work, manifests)
    with atomic_write(work.out) as beside:
        if plan.ending == ".parquet":
            _join_parquet(plan, work, manifests, beside)
        else:
            with beside.open("wb") as handle:
                for place, manifest in enumerate(manifests):
                    _append(work.part(manifest.index, plan.ending), handle, 0 if place == 0 else manifest.header)
        with beside.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256")
    return digest.hexdigest()


def _require_all_written(plan: Plan, work: Work, manifests: list[Manifest]) -> None:
    for manifest in manifests:
        _require_written(plan, work, manifest)


def _require_written(plan: Plan, work: Work, manifest: Manifest) -> None:
    """Checks that a part has the bytes that were written; a power failure or a person may have changed it."""
    path = work.part(manifest.index, plan.ending)
    try:
        with path.open("rb") as handle:
            is_written = hashlib.file_digest(handle, "sha256").hexdigest() == manifest.sha256
    except FileNotFoundError:
        is_written = False
    if not is_written:
        work.manifest_file(manifest.index).unlink(missing_ok=True)
        raise DataError("a part is not as it was written", where=str(path), hint="the same command scores its rows again")


def _move_folder(plan: Plan, work: Work, manifests: list[Manifest]) -> str:
    """Renames the folder of the parts to the result, in place of an earlier one; after a kill the same command completes it."""
    if not work.is_moved:
        _require_all_written(plan, work, manifests)
        work.moving.touch()
        if work.out.exists():
            shutil.rmtree(work.out)
        work.parts.replace(work.out)
        sync_folder(work.out.parent)
    return hashlib.sha256("".join(manifest.sha256 for manifest in manifests).encode()).hexdigest()


def _append(part: Path, handle: BinaryIO, skip: int) -> None:
    with part.open("rb") as source:
        source.seek(skip)
        while block := source.read(COPY_BYTES):
            handle.write(block)


def _join_parquet(plan: Plan, work: Work, manifests: list[Manifest], to: Path) -> None:
    import pyarrow.parquet as pq

    parts = [work.part(manifest.index, plan.ending) for manifest in manifests]
    schema = pq.read_schema(parts[0])
    rows = max(1, min(GROUP_ROWS, GROUP_BYTES * plan.rows // max(1, _bytes(plan))))
    with pq.ParquetWriter(to, schema) as writer:
        for table in _groups(parts, rows):
            writer.write_table(table, row_group_size=rows)


def _bytes(plan: Plan) -> int:
    """The uncompressed size of the source, which does not depend on how it is divided into parts."""
    import pyarrow.parquet as pq

    found = [pq.read_metadata(file.path) for file in plan.files]
    return sum(one.row_group(group).total_byte_size for one in found for group in range(one.num_row_groups))


def _groups(parts: list[Path], rows: int) -> Iterator[pa.Table]:
    """Yields tables of exactly `rows` rows, and a last one with the rest: however the rows were divided into parts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[pa.Table] = []
    count = 0
    for part in parts:
        file = pq.ParquetFile(part)
        for group in range(file.metadata.num_row_groups):
            for batch in file.iter_batches(batch_size=READ_ROWS, row_groups=[group]):
                held.append(pa.Table.from_batches([batch]))
                count += batch.num_rows
                while count >= rows:
                    table = pa.concat_tables(held)
                    yield table.slice(0, rows).combine_chunks()
                    held, count = [table.slice(rows)], count - rows
            pa.default_memory_pool().release_unused()  # it would keep more with each group
    if count:
        yield pa.concat_tables(held).combine_chunks()

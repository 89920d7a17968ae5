"""The process that works on one batch: `python -m headrace.services.api.batch_worker FOLDER`. It ends with the API server.

A separate process, so that a malicious Parquet file can harm nothing else. It yields to interactive requests: it has a lower
priority and sends two requests at a time, each no larger than a tenth of a second allows. After a SIGTERM it keeps the
answers so far and ends: other tenants have their turn, and the batch is queued again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

from headrace import processes
from headrace.client import AsyncClient
from headrace.client.errors import CallFailed, Forbidden, NotFound
from headrace.errors import DamagedFile, HeadraceError
from headrace.files import atomic_write, is_disk_full
from headrace.project import Project, find_project
from headrace.runtime.contract import Contract
from headrace.scoring.open_rows import open_rows
from headrace.scoring.results import Summary, write_result
from headrace.scoring.rows import JSON_LINES, PARQUET, BadFile, Line, RowsFile
from headrace.services.api.batch_requests import AT_ONCE, BatchClient, RetryLater, encode
from headrace.services.api.batch_rows import damaged_parts, lines_of, write_parquet
from headrace.services.api.batch_store import BatchFolder, Progress, now
from headrace.services.api.internal_tokens import REVOKED, RevokedTokens, TenantToken

logger = logging.getLogger("headrace.services.api.batch")
MAX_MEMORY_BYTES = 2 << 30
RETRY_SECONDS = 15.0
"""When no replica could answer, the batch is tried again after this time."""
GIVE_UP_SECONDS = 24 * 3600.0
"""A batch without progress for this long has failed."""
NICENESS = 5


class BatchFailed(Exception):
    """The batch cannot be completed; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


async def work(folder: BatchFolder, project: Project, stop: Event) -> Progress:
    """Answers the missing parts and returns the new state of the batch: done, failed, or waiting; queued after `stop`."""
    try:
        token = TenantToken(folder.submitted, project)
        async with AsyncClient(**token.client_options(), timeout=project.settings.request_seconds + 5.0, retries=4) as client:
            return await _answer_parts(folder, client, project, stop)
    except (BadFile, BatchFailed) as error:
        return replace(folder.progress, state="failed", error={"code": error.code, "message": error.message}, changed_at=now())
    except RetryLater as error:
        return _waiting(folder.progress, error)
    except (Forbidden, NotFound):  # the model may come back
        return _waiting(folder.progress, RetryLater("not_served", "the model is not served at the moment", RETRY_SECONDS))
    except CallFailed as error:
        # Also for a token that was revoked: replicas notice first, and the API server then ends the batch.
        return _waiting(
            folder.progress, RetryLater(error.code or "unavailable", error.message, error.retry_after or RETRY_SECONDS)
        )
    except (OSError, HeadraceError) as error:
        if is_disk_full(error):
            return _waiting(folder.progress, RetryLater("disk_full", "the service's disk is full", RETRY_SECONDS))
        if isinstance(error, DamagedFile):  # for example the list of tokens, which is not the batch's fault
            logger.error("batch %s waits: %s", folder.path.name, error)
            return _waiting(folder.progress, RetryLater("unavailable", "the service needs its operator", RETRY_SECONDS))
        raise


async def _answer_parts(folder: BatchFolder, client: AsyncClient, project: Project, stop: Event) -> Progress:
    submitted = folder.submitted
    contract = Contract.model_validate((await client.describe(submitted.model))["contract"])
    parts, before = folder.parts(), folder.progress
    file = await asyncio.to_thread(open_rows, folder.input, contract, submitted.columns, submitted.media_type)
    total = before.rows_total  # counted in an earlier turn
    if total is None:
        total = await asyncio.to_thread(file.count)
    if total == 0:
        raise BatchFailed("no_rows", "the file has no rows")
    progress = Progress(
        "running",
        sum(p.rows for p in parts),
        sum(p.failed for p in parts),
        total,
        changed_at=before.changed_at or now(),
        answer_bytes=sum(part.path.stat().st_size for part in parts),
        media_type=file.media_type,
        notes=file.notes,
    )
    folder.write_progress(progress)
    # After a quota was used up, one request at a time: the rest of the next quota may be too small for two.
    at_once = 1 if (before.error or {}).get("code") == "quota_exceeded" else AT_ONCE
    batch_client = BatchClient(client, contract, submitted.id, at_once, stop)
    revoked = RevokedTokens(project)
    chunks = file.chunks(progress.rows_done)
    for index in itertools.count(len(parts)):
        if progress.rows_done >= total:
            break
        if submitted.jti in revoked.read():
            raise BatchFailed(**REVOKED)
        found = await asyncio.to_thread(next, chunks, None)
        if found is None:
            raise BadFile("bad_file", f"the file ends after {progress.rows_done} of {total} rows")
        lines, failure = await batch_client.answer(found.values, progress.rows_done)
        if lines:
            failed, size = _write_part(folder, index, lines)
            progress = replace(
                progress,
                rows_done=progress.rows_done + len(lines),
                rows_failed=progress.rows_failed + failed,
                changed_at=now(),
                answer_bytes=progress.answer_bytes + size,
            )
            folder.write_progress(progress)
        if failure is not None:
            raise failure
        if stop.is_set():
            return replace(progress, state="queued")
    if (rows_failed := await _answer_damaged(folder, file, batch_client)) is None:
        return replace(progress, state="queued")
    summary = await asyncio.to_thread(_write_result, folder, file)
    refusals, warnings = summary.refusals.to_list(), summary.unseen.to_dict()
    progress = replace(progress, rows_failed=rows_failed, notes=file.notes, refusals=refusals, warnings=warnings)
    return replace(progress, state="done", changed_at=now())


def _write_result(folder: BatchFolder, file: RowsFile) -> Summary:
    """Writes the result, unless it is the parts as they are, and counts the answers."""
    parts = folder.parts()
    if file.others != "refuse" or file.media_type not in (PARQUET, JSON_LINES):
        with atomic_write(folder.table) as beside, beside.open("wb") as handle:
            return write_result(file, handle, lines_of(parts))
    if file.media_type == PARQUET:
        write_parquet(parts, file.contract, folder.result)
    summary = Summary()
    for line in lines_of(parts):
        summary.add(line)
    return summary


async def _answer_damaged(folder: BatchFolder, file: RowsFile, client: BatchClient) -> int | None:
    """Answers the rows of damaged parts again. Returns the number of failed rows of all parts; None after `stop`."""
    for part, first in await asyncio.to_thread(lambda: list(damaged_parts(folder.parts()))):
        logger.error("the part %s is damaged; its rows are answered again", part.path)
        chunk = await asyncio.to_thread(next, file.chunks(first))
        lines, failure = await client.answer(chunk.values[: part.rows], first)
        if failure is not None:
            raise failure
        if len(lines) < part.rows:
            return None
        failed, _ = _write_part(folder, part.index, lines)
        if failed != part.failed:  # the number is in the name
            part.path.unlink()
    return sum(part.failed for part in folder.parts())


def _write_part(folder: BatchFolder, index: int, lines: list[Line]) -> tuple[int, int]:
    """Writes a part and returns the number of failed rows, and its size in bytes."""
    failed, content = sum("error" in line for line in lines), b"".join(encode(line) for line in lines)
    with atomic_write(folder.part_path(index, len(lines), failed)) as beside:
        beside.write_bytes(content)
    return failed, len(content)


def _waiting(progress: Progress, why: RetryLater) -> Progress:
    error = {"code": why.code, "message": why.message}
    began = progress.changed_at or now()
    if why.code != "quota_exceeded" and now() - began > GIVE_UP_SECONDS:
        return replace(progress, state="failed", error=error, waits_until=None)
    return replace(progress, state="waiting", error=error, waits_until=now() + why.seconds, changed_at=began)


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    processes.die_with_parent()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    folder = BatchFolder(Path(sys.argv[1]))
    project = find_project()
    with _exclusive(folder):
        if not folder.progress.has_ended:
            folder.write_progress(progress := asyncio.run(work(folder, project, stop)))
            if progress.has_ended:
                folder.input.unlink(missing_ok=True)  # the rows are not needed any more
    return 0


@contextlib.contextmanager
def _exclusive(folder: BatchFolder) -> Iterator[None]:
    """Waits until no other process works on the batch: that of an earlier API server ends shortly after it."""
    with folder.lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())

"""The process that works on one batch: `python -m headrace.services.api.batch_worker FOLDER`. It ends with the API server.

A separate process, so that a malicious Parquet file can harm nothing else. It yields to interactive requests: it has a lower
priority and sends two requests at a time, each no larger than a tenth of a second allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from headrace import processes
from headrace.client import AsyncClient
from headrace.client.errors import CallFailed, Forbidden, NotFound
from headrace.errors import HeadraceError
from headrace.files import atomic_write, is_disk_full
from headrace.project import Project, find_project
from headrace.runtime.contract import Contract
from headrace.services.api.batch_requests import AT_ONCE, BatchClient, Line, RetryLater, encode
from headrace.services.api.batch_rows import BadFile, count_rows, parts_from, write_parquet
from headrace.services.api.batch_store import PARQUET, BatchFolder, Progress, now
from headrace.services.api.internal_tokens import TenantToken, is_revoked

logger = logging.getLogger("headrace.services.api.batch")
MAX_MEMORY_BYTES = 2 << 30
RETRY_SECONDS = 15.0
"""When no replica could answer, the batch is tried again after this time."""
GIVE_UP_SECONDS = 24 * 3600.0
"""A batch without progress for this long has failed."""
NICENESS = 5
REVOKED = {"code": "unauthorized", "message": "the token that the batch was sent with was revoked"}


class BatchFailed(Exception):
    """The batch cannot be completed; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


async def work(folder: BatchFolder, project: Project) -> Progress:
    """Answers the missing parts and returns the new state of the batch: done, failed, or waiting."""
    try:
        token = TenantToken(folder.submitted, project)
        async with AsyncClient(**token.client_options(), timeout=project.settings.request_seconds + 5.0, retries=4) as client:
            return await _answer_parts(folder, client, project)
    except (BadFile, BatchFailed) as error:
        return replace(folder.progress, state="failed", error={"code": error.code, "message": error.message}, changed_at=now())
    except RetryLater as error:
        return _waiting(folder.progress, error)
    except (Forbidden, NotFound):  # the model may come back
        return _waiting(folder.progress, RetryLater("not_served", "the model is not served at the moment", RETRY_SECONDS))
    except CallFailed as error:
        if is_revoked(project, folder.submitted.jti):  # replicas noticed first
            return replace(folder.progress, state="failed", error=REVOKED, changed_at=now())
        return _waiting(
            folder.progress, RetryLater(error.code or "unavailable", error.message, error.retry_after or RETRY_SECONDS)
        )
    except (OSError, HeadraceError) as error:
        if is_disk_full(error):
            return _waiting(folder.progress, RetryLater("disk_full", "the service's disk is full", RETRY_SECONDS))
        raise


async def _answer_parts(folder: BatchFolder, client: AsyncClient, project: Project) -> Progress:
    submitted = folder.submitted
    contract = Contract.model_validate((await client.describe(submitted.model))["contract"])
    total = await asyncio.to_thread(count_rows, folder.input, submitted.media_type, contract)
    if total == 0:
        raise BatchFailed("no_rows", "the file has no rows")
    parts, before = folder.parts(), folder.progress
    progress = Progress(
        "running",
        sum(p.rows for p in parts),
        sum(p.failed for p in parts),
        total,
        changed_at=before.changed_at or now(),
    )
    folder.write_progress(progress)
    # After a quota was used up, one request at a time: the rest of the next quota may be too small for two.
    at_once = 1 if (before.error or {}).get("code") == "quota_exceeded" else AT_ONCE
    batch_client = BatchClient(client, submitted.model, submitted.id, at_once)
    rows = parts_from(folder.input, submitted.media_type, progress.rows_done)
    for index in itertools.count(len(parts)):
        if progress.rows_done >= total:
            break
        if is_revoked(project, submitted.jti):
            raise BatchFailed(**REVOKED)
        found = await asyncio.to_thread(next, rows, None)
        if found is None:
            raise BadFile("bad_file", f"the file ends after {progress.rows_done} of {total} rows")
        lines, failure = await batch_client.answer(found, progress.rows_done)
        if lines:
            failed = progress.rows_failed + _write_part(folder, index, lines)
            progress = replace(progress, rows_done=progress.rows_done + len(lines), rows_failed=failed, changed_at=now())
            folder.write_progress(progress)
        if failure is not None:
            raise failure
    if submitted.media_type == PARQUET:
        await asyncio.to_thread(write_parquet, folder.parts(), contract, folder.result)
    return replace(progress, state="done", changed_at=now())


def _write_part(folder: BatchFolder, index: int, lines: list[Line]) -> int:
    """Writes a part and returns the number of failed rows."""
    failed = sum("error" in line for line in lines)
    with atomic_write(folder.part_path(index, len(lines), failed)) as beside:
        beside.write_bytes(b"".join(encode(line) for line in lines))
    return failed


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
    folder = BatchFolder(Path(sys.argv[1]))
    project = find_project()
    with _exclusive(folder):
        if not folder.progress.has_ended:
            folder.write_progress(progress := asyncio.run(work(folder, project)))
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

"""The process that works on one batch: `python -m headrace.services.api.batch_worker FOLDER`. It ends with the API server.

A process of its own, so that a hostile Parquet file can take down nothing else; and behind interactive requests: of lower
priority, with two requests at a time, each as large as a tenth of a second allows.
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
from headrace.files import is_disk_full, whole
from headrace.project import Project, find_project
from headrace.runtime.contract import Contract
from headrace.services.api.batch_requests import AT_ONCE, Asking, Line, Waits, encode
from headrace.services.api.batch_rows import BadFile, count_rows, parts_from, write_parquet
from headrace.services.api.batch_store import PARQUET, BatchFolder, Progress, now
from headrace.services.api.internal_tokens import TenantToken, is_revoked
from headrace.settings import Settings, load_settings

logger = logging.getLogger("headrace.services.api.batch")
MOST_MEMORY_BYTES = 2 << 30
PASSING_SECONDS = 15.0
"""After this the batch is tried again, when no replica could answer."""
GIVE_UP_SECONDS = 24 * 3600.0
"""A batch that gets no further for so long has failed."""
NICENESS = 5
REVOKED = {"code": "unauthorized", "message": "the token that the batch was sent with was revoked"}


class Failed(Exception):
    """The batch cannot be done; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


async def work(folder: BatchFolder, project: Project, settings: Settings) -> Progress:
    """Answers the parts that are missing, then says how the batch stands: done, failed, or waiting."""
    try:
        token = TenantToken(folder.submitted, project, settings)
        async with AsyncClient(**token.client_options(), timeout=settings.request_seconds + 5.0, retries=4) as client:
            return await _answer_parts(folder, client, project)
    except (BadFile, Failed) as error:
        return replace(folder.progress, state="failed", error={"code": error.code, "message": error.message}, changed_at=now())
    except Waits as error:
        return _waiting(folder.progress, error)
    except (Forbidden, NotFound):  # the model may be on its way back
        return _waiting(folder.progress, Waits("not_served", "the model is not served at the moment", PASSING_SECONDS))
    except CallFailed as error:
        if is_revoked(project, folder.submitted.jti):  # replicas knew it sooner
            return replace(folder.progress, state="failed", error=REVOKED, changed_at=now())
        return _waiting(
            folder.progress, Waits(error.code or "unavailable", error.message, error.retry_after or PASSING_SECONDS)
        )
    except (OSError, HeadraceError) as error:
        if is_disk_full(error):
            return _waiting(folder.progress, Waits("disk_full", "the service's disk is full", PASSING_SECONDS))
        raise


async def _answer_parts(folder: BatchFolder, client: AsyncClient, project: Project) -> Progress:
    submitted = folder.submitted
    contract = Contract.model_validate((await client.describe(submitted.model))["contract"])
    total = await asyncio.to_thread(count_rows, folder.input, submitted.media_type, contract)
    if total == 0:
        raise Failed("no_rows", "the file holds no rows")
    parts, before = folder.parts(), folder.progress
    progress = Progress(
        "running",
        sum(p.rows for p in parts),
        sum(p.failed for p in parts),
        total,
        changed_at=before.changed_at or now(),
    )
    folder.tell(progress)
    # After a quota was used up, one request at a time: what is left of the next may be too little for two.
    at_once = 1 if (before.error or {}).get("code") == "quota_exceeded" else AT_ONCE
    asking = Asking(client, submitted.model, submitted.id, at_once)
    rows = parts_from(folder.input, submitted.media_type, progress.rows_done)
    for index in itertools.count(len(parts)):
        if progress.rows_done >= total:
            break
        if is_revoked(project, submitted.jti):
            raise Failed(**REVOKED)
        found = await asyncio.to_thread(next, rows, None)
        if found is None:
            raise BadFile("bad_file", f"the file ends after {progress.rows_done} of {total} rows")
        lines, failure = await asking.answer(found, progress.rows_done)
        if lines:
            failed = progress.rows_failed + _write_part(folder, index, lines)
            progress = replace(progress, rows_done=progress.rows_done + len(lines), rows_failed=failed, changed_at=now())
            folder.tell(progress)
        if failure is not None:
            raise failure
    if submitted.media_type == PARQUET:
        await asyncio.to_thread(write_parquet, folder.parts(), contract, folder.result)
    return replace(progress, state="done", changed_at=now())


def _write_part(folder: BatchFolder, index: int, lines: list[Line]) -> int:
    """Gives how many rows failed."""
    failed = sum("error" in line for line in lines)
    with whole(folder.part_path(index, len(lines), failed)) as beside:
        beside.write_bytes(b"".join(encode(line) for line in lines))
    return failed


def _waiting(progress: Progress, why: Waits) -> Progress:
    error = {"code": why.code, "message": why.message}
    began = progress.changed_at or now()
    if why.code != "quota_exceeded" and now() - began > GIVE_UP_SECONDS:
        return replace(progress, state="failed", error=error, waits_until=None)
    return replace(progress, state="waiting", error=error, waits_until=now() + why.seconds, changed_at=began)


# -- the process


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    processes.die_with_parent()
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    folder = BatchFolder(Path(sys.argv[1]))
    project = find_project()
    with _exclusive(folder):
        if not folder.progress.has_ended:
            folder.tell(progress := asyncio.run(work(folder, project, load_settings(project))))
            if progress.has_ended:
                folder.input.unlink(missing_ok=True)  # nobody needs the rows any more
    return 0


@contextlib.contextmanager
def _exclusive(folder: BatchFolder) -> Iterator[None]:
    """Waits until no other process works on the batch: one of an earlier desk ends with it, but not in the same instant."""
    with folder.lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())

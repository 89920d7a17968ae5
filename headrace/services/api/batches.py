"""Routes for batches: a file of rows is sent, a model answers it in the background, and the result is fetched later."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from headrace.project import Project
from headrace.runtime.http import CLOSE, VALID_ID, Refused, invalid_field, require_media_type, to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import Caller
from headrace.scoring.rows import CSV, JSON_LINES, PARQUET, Others
from headrace.services.api.batch_queue import BatchQueue
from headrace.services.api.batch_store import (
    DAMAGED,
    ID,
    MEDIA_TYPES,
    OTHERS,
    BatchFolder,
    BatchStore,
    Progress,
    Submitted,
    batch_id,
    now,
)
from headrace.services.api.catalogue import Catalogue
from headrace.services.api.disk_limits import UploadBudget
from headrace.services.api.uploads import Upload, receive
from headrace.serving.access.tokens import OPERATOR

logger = logging.getLogger("headrace.services.api.batch")
MAX_OPEN = 20
"""Batches of one tenant that have not ended."""
READ_BYTES = 1 << 20
ENDINGS = {PARQUET: "parquet", JSON_LINES: "jsonl", CSV: "csv"}
PATH = "/v1/models/{name}/batches"


class BatchRoutes:
    """The routes and their queue. An asynchronous context manager."""

    def __init__(self, project: Project, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = project.settings, catalogue
        self._store = BatchStore(project)
        self._queue = BatchQueue(project, self._store)
        self._budget = UploadBudget(project)
        self._uploads: Counter[str] = Counter()
        """Uploads in progress, by tenant."""
        self.routes = [
            Route(PATH, self.submit, methods=["POST"]),
            Route(PATH, self.list, methods=["GET"]),
            Route(PATH + "/{batch}", self.show, methods=["GET"]),
            Route(PATH + "/{batch}", self.cancel, methods=["DELETE"]),
            Route(PATH + "/{batch}/result", self.result, methods=["GET"]),
        ]

    async def __aenter__(self) -> BatchRoutes:
        await self._queue.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._queue.__aexit__(kind, error, traceback)

    async def submit(self, request: TrackedRequest) -> Response:
        """Accepts a file of rows as the body; returns 202 with the batch.

        `?columns=keep` returns the columns of the file beside the answers, also those that the model does not know;
        `columns=ignore` the answers alone. By default other columns are refused.

        With an `Idempotency-Key` that was used before, the same file returns the existing batch, and another file 409.
        """
        caller: Caller = request.caller
        entry = await self._catalogue.require(caller, request.path_params["name"])
        media_type, key = require_media_type(request, *MEDIA_TYPES, headers=CLOSE), _key(request)
        columns = _columns(request)
        known = self._queue.get(batch_id(caller.tenant, entry.model, key)) if key else None
        if known is None:
            self._require_capacity(caller.tenant)
        with self._counted_upload(caller.tenant):
            submitted, upload = await self._receive(request, entry.model, media_type, columns, key, known)
        return to_json(self._describe(self._accepted(submitted, upload, columns)), 202)

    async def _receive(
        self, request: TrackedRequest, model: str, media_type: str, columns: Others, key: str, known: Submitted | None
    ) -> tuple[Submitted, Upload]:
        """Writes the file to disk as a batch, unless a batch of this id exists."""
        max_bytes, idle_seconds = self._settings.max_batch_bytes, self._settings.upload_idle_seconds
        caller: Caller = request.caller
        used = await self._used_bytes(caller.tenant, known)
        with self._budget.upload(caller.tenant) as space:
            check = functools.partial(space.check, used)
            async with receive(request, self._store, max_bytes, idle_seconds, check) as upload:
                # Other uploads of the tenant may have ended meanwhile.
                space.check(await self._used_bytes(caller.tenant, known), upload.size)
                return await self._accept(upload, caller, model, media_type, columns, key), upload

    async def _used_bytes(self, tenant: str, known: Submitted | None) -> int:
        """Disk space of the tenant's batches; without `known`, whose file is sent again and not kept twice."""
        used = await asyncio.to_thread(self._queue.used_bytes, tenant)
        return max(0, used - known.bytes) if known else used

    async def _accept(
        self, upload: Upload, caller: Caller, model: str, media_type: str, columns: Others, key: str
    ) -> Submitted:
        submitted = Submitted(
            batch_id(caller.tenant, model, key),
            model,
            caller.tenant,
            caller.jti,
            caller.rows_per_day,
            media_type,
            upload.size,
            upload.sha256,
            now(),
            columns,
            caller.tokens_per_day,
            caller.tokens_per_minute,
        )
        folder = await asyncio.to_thread(self._store.accept, upload.folder, submitted)
        if folder is not None:
            self._queue.add(folder)
        return submitted

    async def list(self, request: TrackedRequest) -> Response:
        caller, model = self._allowed(request)
        own = [batch for batch in self._queue.all() if batch.model == model and _may_see(caller, batch)]
        newest = sorted(own, key=lambda batch: batch.created_at, reverse=True)
        return to_json({"batches": [self._describe(batch) for batch in newest]})

    async def show(self, request: TrackedRequest) -> Response:
        if (damaged := self._damaged(request)) is not None:
            return to_json(damaged)
        return to_json(self._describe(self._own(request)))

    async def cancel(self, request: TrackedRequest) -> Response:
        """Cancels a batch and removes its rows; a batch that has ended is removed completely."""
        submitted = self._own(request)
        return to_json(_format(submitted, await self._queue.cancel(submitted.id)))

    async def result(self, request: TrackedRequest) -> Response:
        """Returns the answers, in the order of the rows and the format of the file; to its tenant only."""
        submitted = self._own(request)
        if submitted.tenant != request.caller.tenant:
            raise Refused(403, "forbidden", "only the tenant that sent a batch gets its result")
        folder = self._store.folder(submitted.id)
        state = folder.progress.state
        if state != "done":
            raise Refused(409, "not_done", f"the batch is {state}; it has a result once it is done", state=state)
        parts, media_type = folder.parts(), folder.progress.media_type or submitted.media_type
        files = _result_files(folder, media_type)
        if sum(part.rows for part in parts) != folder.progress.rows_done or not all(path.is_file() for path in files):
            logger.error("parts of the result of batch %s are missing in %s", submitted.id, folder.path)
            raise Refused(500, "damaged", "parts of the result are missing on the server; submit the file again")
        size = sum(path.stat().st_size for path in files)
        name = f"{submitted.model}-{submitted.id}.{ENDINGS.get(media_type, 'jsonl')}"
        headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_contents(files), headers=headers, media_type=media_type)

    def _allowed(self, request: TrackedRequest) -> tuple[Caller, str]:
        """Returns the caller and the model.

        Raises:
            Refused: 403, the token does not allow the model.
        """
        caller, model = request.caller, request.path_params["name"]
        if not caller.may_call(model):
            raise Refused(403, "forbidden", "this token does not allow this")
        return caller, model

    def _own(self, request: TrackedRequest) -> Submitted:
        """Returns the batch, if the caller may see it.

        Raises:
            Refused: 404, the same for an unknown batch and for one of another tenant.
        """
        caller, model = self._allowed(request)
        found = self._queue.get(request.path_params["batch"]) if ID.fullmatch(request.path_params["batch"]) else None
        if found is None or found.model != model or not _may_see(caller, found):
            raise Refused(404, "unknown_batch", "no such batch")
        return found

    def _damaged(self, request: TrackedRequest) -> dict[str, Any] | None:
        """Returns a batch that was set aside. Its tenant is unknown, so everyone who knows its id learns that it failed."""
        _, model = self._allowed(request)
        wanted = request.path_params["batch"]
        if not ID.fullmatch(wanted) or self._queue.get(wanted) is not None:
            return None
        if (changed_at := self._store.set_aside_at(wanted)) is None:
            return None
        unknown = Submitted(wanted, model, "", "", None, JSON_LINES, 0, "", changed_at)
        return _format(unknown, Progress("failed", error=DAMAGED))

    def _require_capacity(self, tenant: str) -> None:
        if self._queue.count_open(tenant) + self._uploads[tenant] >= MAX_OPEN:
            message = f"{MAX_OPEN} batches have not ended yet; wait for one, or cancel one"
            raise Refused(429, "too_many_batches", message, {"retry-after": "60"})

    @contextmanager
    def _counted_upload(self, tenant: str) -> Iterator[None]:
        self._uploads[tenant] += 1
        try:
            yield
        finally:
            self._uploads[tenant] -= 1

    def _accepted(self, submitted: Submitted, upload: Upload, columns: Others) -> Submitted:
        """Returns the batch of this id: the one just sent, or an earlier one.

        Raises:
            Refused: 409, the earlier batch has another file, or other `columns`.
        """
        known = self._queue.get(submitted.id) or submitted
        if (known.sha256, known.media_type, known.columns) != (upload.sha256, submitted.media_type, columns):
            what = "with another value of columns" if known.sha256 == upload.sha256 else "for another file"
            raise Refused(409, "idempotency_key_reused", f"this idempotency-key was used {what}", {"connection": "close"})
        return known

    def _describe(self, submitted: Submitted) -> dict[str, Any]:
        return _format(submitted, self._queue.progress(submitted.id))


def _may_see(caller: Caller, batch: Submitted) -> bool:
    """Whether the caller may see and cancel a batch: its tenant, and the operator."""
    return caller.tenant == batch.tenant or (caller.tenant == OPERATOR and caller.has_all_models)


def _format(submitted: Submitted, progress: Progress) -> dict[str, Any]:
    """A batch as clients see it."""
    values = asdict(progress)
    return {
        "id": submitted.id,
        "model": submitted.model,
        "tenant": submitted.tenant,
        "state": values.pop("state"),
        **{name: values[name] for name in ("rows_done", "rows_failed", "rows_total", "waits_until", "error")},
        "created_at": submitted.created_at,
        "media_type": progress.media_type or submitted.media_type,
        "columns": submitted.columns,
        "notes": progress.notes,
        "refusals": progress.refusals,
        "warnings": progress.warnings,
        "path": f"/v1/models/{submitted.model}/batches/{submitted.id}",
    }


def _key(request: TrackedRequest) -> str:
    key = request.headers.get("idempotency-key", "")
    if key and not VALID_ID.fullmatch(key):
        raise invalid_field("idempotency-key", "1 to 128 letters, digits or . _ : / + = @ -", f"{len(key)} characters")
    return key


def _columns(request: TrackedRequest) -> Others:
    given = request.query_params.get("columns", OTHERS[0])
    if given not in OTHERS:
        raise invalid_field("columns", f"one of {', '.join(OTHERS)}", given[:100] or "nothing")
    return given


def _result_files(folder: BatchFolder, media_type: str) -> list[Path]:
    """Returns the files that make up the result."""
    if folder.table.is_file():
        return [folder.table]
    return [folder.result] if media_type == PARQUET else [part.path for part in folder.parts()]


async def _contents(files: list[Path]) -> AsyncIterator[bytes]:
    for path in files:
        with path.open("rb") as handle:
            while chunk := await asyncio.to_thread(handle.read, READ_BYTES):
                yield chunk

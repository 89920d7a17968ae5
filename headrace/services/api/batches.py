"""Routes for batches: a file of rows is sent, a model answers it in the background, and the result is fetched later."""

from __future__ import annotations

import asyncio
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
from headrace.services.api.batch_queue import BatchQueue
from headrace.services.api.batch_store import ID, JSON_LINES, PARQUET, BatchStore, Progress, Submitted, batch_id, now
from headrace.services.api.catalogue import Catalogue
from headrace.services.api.uploads import Upload, receive

MAX_OPEN = 20
"""Batches of one tenant that have not ended."""
READ_BYTES = 1 << 20
PATH = "/v1/models/{name}/batches"


class BatchRoutes:
    """The routes and their queue. An asynchronous context manager."""

    def __init__(self, project: Project, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = project.settings, catalogue
        self._store = BatchStore(project)
        self._queue = BatchQueue(project, self._store, project.settings.batch_days * 86400)
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
        """Accepts a Parquet file or JSON lines as the body; returns 202 with the batch.

        With an `Idempotency-Key` that was used before, the same file returns the existing batch, and another file 409.
        """
        caller: Caller = request.caller
        entry = await self._catalogue.require(caller, request.path_params["name"])
        media_type, key = require_media_type(request, PARQUET, JSON_LINES, headers=CLOSE), _key(request)
        known = self._queue.get(batch_id(caller.tenant, entry.model, key)) if key else None
        if known is None:
            self._require_capacity(caller.tenant)
        with self._counted_upload(caller.tenant):
            submitted, upload = await self._receive(request, caller, entry.model, media_type, key)
        return to_json(self._describe(self._accepted(submitted, upload)), 202)

    async def _receive(
        self, request: TrackedRequest, caller: Caller, model: str, media_type: str, key: str
    ) -> tuple[Submitted, Upload]:
        """Writes the file to disk as a batch, unless a batch of this id exists."""
        max_bytes, idle_seconds = self._settings.max_batch_bytes, self._settings.upload_idle_seconds
        async with receive(request, self._store, max_bytes, idle_seconds) as upload:
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
            )
            folder = await asyncio.to_thread(self._store.accept, upload.folder, submitted)
        if folder is not None:
            self._queue.add(folder)
        return submitted, upload

    async def list(self, request: TrackedRequest) -> Response:
        caller, model = self._allowed(request)
        own = [batch for batch in self._queue.all() if (batch.tenant, batch.model) == (caller.tenant, model)]
        newest = sorted(own, key=lambda batch: batch.created_at, reverse=True)
        return to_json({"batches": [self._describe(batch) for batch in newest]})

    async def show(self, request: TrackedRequest) -> Response:
        return to_json(self._describe(self._own(request)))

    async def cancel(self, request: TrackedRequest) -> Response:
        """Cancels a batch and removes its rows; a batch that has ended is removed completely."""
        submitted = self._own(request)
        return to_json(_format(submitted, await self._queue.cancel(submitted.id)))

    async def result(self, request: TrackedRequest) -> Response:
        """Returns the answers, in the order of the rows and the format of the file."""
        submitted = self._own(request)
        folder = self._store.folder(submitted.id)
        state = folder.progress.state
        if state != "done":
            raise Refused(409, "not_done", f"the batch is {state}; it has a result once it is done", state=state)
        files = [folder.result] if submitted.media_type == PARQUET else [part.path for part in folder.parts()]
        size = sum(path.stat().st_size for path in files)
        name = f"{submitted.model}-{submitted.id}.{'parquet' if submitted.media_type == PARQUET else 'jsonl'}"
        headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_contents(files), headers=headers, media_type=submitted.media_type)

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
        """Returns the batch, if it belongs to the caller.

        Raises:
            Refused: 404, the same for an unknown batch and for one of another tenant.
        """
        caller, model = self._allowed(request)
        found = self._queue.get(request.path_params["batch"]) if ID.fullmatch(request.path_params["batch"]) else None
        if found is None or (found.tenant, found.model) != (caller.tenant, model):
            raise Refused(404, "unknown_batch", "no such batch")
        return found

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

    def _accepted(self, submitted: Submitted, upload: Upload) -> Submitted:
        """Returns the batch of this id: the one just sent, or an earlier one.

        Raises:
            Refused: 409, the earlier batch has another file.
        """
        known = self._queue.get(submitted.id) or submitted
        if (known.sha256, known.media_type) != (upload.sha256, submitted.media_type):
            raise Refused(
                409, "idempotency_key_reused", "this idempotency-key was used for another file", {"connection": "close"}
            )
        return known

    def _describe(self, submitted: Submitted) -> dict[str, Any]:
        return _format(submitted, self._queue.progress(submitted.id))


def _format(submitted: Submitted, progress: Progress) -> dict[str, Any]:
    """A batch as clients see it."""
    values = asdict(progress)
    return {
        "id": submitted.id,
        "model": submitted.model,
        "state": values.pop("state"),
        **{name: values[name] for name in ("rows_done", "rows_failed", "rows_total", "waits_until", "error")},
        "created_at": submitted.created_at,
        "media_type": submitted.media_type,
        "path": f"/v1/models/{submitted.model}/batches/{submitted.id}",
    }


def _key(request: TrackedRequest) -> str:
    key = request.headers.get("idempotency-key", "")
    if key and not VALID_ID.fullmatch(key):
        raise invalid_field("idempotency-key", "1 to 128 letters, digits or . _ : / + = @ -", f"{len(key)} characters")
    return key


async def _contents(files: list[Path]) -> AsyncIterator[bytes]:
    for path in files:
        with path.open("rb") as handle:
            while chunk := await asyncio.to_thread(handle.read, READ_BYTES):
                yield chunk

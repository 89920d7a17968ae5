"""Batches: a file of rows comes in, a model works through it in the background, and its answers are fetched later."""

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
from headrace.settings import Settings

MOST_OPEN = 20
"""Batches of one tenant that have not ended."""
READ_BYTES = 1 << 20
PATH = "/v1/models/{name}/batches"


class Batches:
    """The routes, and the queue behind them. Use as an asynchronous context."""

    def __init__(self, project: Project, settings: Settings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._store = BatchStore(project)
        self._queue = BatchQueue(project, self._store, settings.batch_days * 86400)
        self._arriving: Counter[str] = Counter()
        """Uploads under way, by tenant."""
        self.routes = [
            Route(PATH, self.submit, methods=["POST"]),
            Route(PATH, self.list, methods=["GET"]),
            Route(PATH + "/{batch}", self.show, methods=["GET"]),
            Route(PATH + "/{batch}", self.cancel, methods=["DELETE"]),
            Route(PATH + "/{batch}/result", self.result, methods=["GET"]),
        ]

    async def __aenter__(self) -> Batches:
        await self._queue.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._queue.__aexit__(kind, error, traceback)

    async def submit(self, request: TrackedRequest) -> Response:
        """A Parquet file or JSON lines as the body; answers 202 with the batch.

        With an `Idempotency-Key` that was used before, the same file gives the batch there is, and another file 409.
        """
        caller: Caller = request.caller
        listed = await self._catalogue.require(caller, request.path_params["name"])
        media_type, key = require_media_type(request, PARQUET, JSON_LINES, headers=CLOSE), _key(request)
        known = self._queue.get(batch_id(caller.tenant, listed.model, key)) if key else None
        if known is None:
            self._require_room(caller.tenant)
        with self._arrival(caller.tenant):
            submitted, upload = await self._receive(request, caller, listed.model, media_type, key)
        return to_json(self._told(self._accepted(submitted, upload)), 202)

    async def _receive(
        self, request: TrackedRequest, caller: Caller, model: str, media_type: str, key: str
    ) -> tuple[Submitted, Upload]:
        """The file on disk as a batch; where there is one of this id already, that one stays."""
        most, idle_seconds = self._settings.max_batch_bytes, self._settings.upload_idle_seconds
        async with receive(request, self._store, most, idle_seconds) as upload:
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
        own = [one for one in self._queue.all() if (one.tenant, one.model) == (caller.tenant, model)]
        newest = sorted(own, key=lambda one: one.created_at, reverse=True)
        return to_json({"batches": [self._told(one) for one in newest]})

    async def show(self, request: TrackedRequest) -> Response:
        return to_json(self._told(self._own(request)))

    async def cancel(self, request: TrackedRequest) -> Response:
        """Ends a batch that has not ended, and removes its rows; one that has is forgotten as a whole."""
        submitted = self._own(request)
        told = await self._queue.cancel(submitted.id)
        return to_json(_shown(submitted, told))

    async def result(self, request: TrackedRequest) -> Response:
        """The answers, in the order of the rows and the format of the file."""
        submitted = self._own(request)
        folder = self._store.folder(submitted.id)
        state = folder.progress.state
        if state != "done":
            raise Refused(409, "not_done", f"the batch is {state}; its result is there once it is done", state=state)
        files = [folder.result] if submitted.media_type == PARQUET else [part.path for part in folder.parts()]
        size = sum(path.stat().st_size for path in files)
        name = f"{submitted.model}-{submitted.id}.{'parquet' if submitted.media_type == PARQUET else 'jsonl'}"
        headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
        return StreamingResponse(_contents(files), headers=headers, media_type=submitted.media_type)

    # -- whose batch it is

    def _allowed(self, request: TrackedRequest) -> tuple[Caller, str]:
        """
        Raises:
            Refused: 403, the token does not open the model.
        """
        caller, model = request.caller, request.path_params["name"]
        if not caller.may_call(model):
            raise Refused(403, "forbidden", "this token does not allow this")
        return caller, model

    def _own(self, request: TrackedRequest) -> Submitted:
        """
        Raises:
            Refused: 404, alike for a batch that is not there and for one of another tenant.
        """
        caller, model = self._allowed(request)
        found = self._queue.get(request.path_params["batch"]) if ID.fullmatch(request.path_params["batch"]) else None
        if found is None or (found.tenant, found.model) != (caller.tenant, model):
            raise Refused(404, "unknown_batch", "no such batch")
        return found

    def _require_room(self, tenant: str) -> None:
        if self._queue.open_of(tenant) + self._arriving[tenant] >= MOST_OPEN:
            message = f"{MOST_OPEN} batches have not ended yet; wait for one, or cancel one"
            raise Refused(429, "too_many_batches", message, {"retry-after": "60"})

    @contextmanager
    def _arrival(self, tenant: str) -> Iterator[None]:
        self._arriving[tenant] += 1
        try:
            yield
        finally:
            self._arriving[tenant] -= 1

    def _accepted(self, submitted: Submitted, upload: Upload) -> Submitted:
        """The batch of this id: the one just sent, or the one that was there.

        Raises:
            Refused: 409, it was made from another file.
        """
        known = self._queue.get(submitted.id) or submitted
        if (known.sha256, known.media_type) != (upload.sha256, submitted.media_type):
            raise Refused(
                409, "idempotency_key_reused", "this idempotency-key was used for another file", {"connection": "close"}
            )
        return known

    def _told(self, submitted: Submitted) -> dict[str, Any]:
        return _shown(submitted, self._queue.progress(submitted.id))


def _shown(submitted: Submitted, progress: Progress) -> dict[str, Any]:
    """A batch in the words of clients."""
    shown = asdict(progress)
    return {
        "id": submitted.id,
        "model": submitted.model,
        "state": shown.pop("state"),
        **{name: shown[name] for name in ("rows_done", "rows_failed", "rows_total", "waits_until", "error")},
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

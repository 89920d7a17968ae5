"""The asynchronous client, with the methods of `Client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from headrace.client import calls, connection, requests
from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.calls import Call, Core, T
from headrace.client.client import READ_BYTES
from headrace.client.connection import Token, Verify
from headrace.client.errors import CallFailed, TimedOut
from headrace.client.requests import ApiRequest, Columns, EventParser
from headrace.files import atomic_write


class AsyncClient(Core):
    """Calls models behind a gateway from one event loop. Arguments, methods and errors are those of `Client`."""

    def __init__(
        self,
        address: str | None = None,
        token: Token | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        verify: Verify = True,
    ) -> None:
        super().__init__(timeout, retries)
        self._http = httpx.AsyncClient(**connection.client_options(address, token, verify))
        self._address = str(self._http.base_url)

    async def models(self) -> list[dict[str, Any]]:
        return await self._call(calls.models())

    async def describe(self, model: str) -> dict[str, Any]:
        return await self._call(calls.describe(model))

    async def predict(self, model: str, instances: Any, *, request_id: str | None = None) -> Prediction:
        return await self._call(calls.predict(model, instances, request_id))

    async def explain(
        self, model: str, instance: Any, *, target: str | int | None = None, evaluations: int | None = None, **options: Any
    ) -> Explanation:
        return await self._call(calls.explain(model, instance, {"target": target, "evaluations": evaluations, **options}))

    async def stream(self, model: str, instance: Any) -> AsyncIterator[Piece]:
        request = requests.stream_request(model, instance)
        retries = self._stream_retries(request)
        while True:
            try:
                async for piece in self._pieces(request, retries.remaining()):
                    retries.has_begun = True
                    yield piece
                return
            except CallFailed as error:
                pause = retries.pause_after(error)
            await asyncio.sleep(pause)

    async def feedback(self, about: str, truth: Any, row: int = 0) -> dict[str, Any]:
        return await self._call(calls.feedback(about, truth, row))

    async def submit(
        self,
        model: str,
        rows: Any,
        *,
        media_type: str | None = None,
        key: str | None = None,
        columns: Columns = "refuse",
    ) -> Batch:
        call = await asyncio.to_thread(calls.submit, model, rows, media_type, key, columns)
        return await self._call(call)

    async def batch(self, model: str, batch: str) -> Batch:
        return await self._call(calls.batch(model, batch))

    async def batches(self, model: str) -> list[Batch]:
        return await self._call(calls.batches(model))

    async def wait(
        self, model: str, batch: str, seconds: float = 3600.0, progress: Callable[[Batch], object] | None = None
    ) -> Batch:
        polling = calls.Polling(seconds, progress)
        while not (found := await self.batch(model, batch)).has_ended:
            await asyncio.sleep(polling.pause_after(found))
        return found

    async def result(self, model: str, batch: str, to: str | Path) -> Path:
        call = requests.batches_request(model, batch, "/result")
        with atomic_write(Path(to)) as temporary, connection.translated_errors(call, self._address):
            async with self._open(call, self._timeout) as response:
                await self._check(response, call)
                with temporary.open("wb") as handle:
                    async for chunk in response.aiter_raw():
                        await asyncio.to_thread(handle.write, chunk)
        return Path(to)

    async def cancel(self, model: str, batch: str) -> Batch:
        return await self._call(calls.cancel(model, batch))

    async def candidates(self) -> list[dict[str, Any]]:
        return await self._call(calls.candidates())

    async def history(self, model: str) -> list[dict[str, Any]]:
        return await self._call(calls.history(model))

    async def approve(self, model: str, version: str, why: str = "") -> dict[str, Any]:
        return await self._call(calls.review(model, version, "approve", why))

    async def reject(self, model: str, version: str, why: str) -> dict[str, Any]:
        return await self._call(calls.review(model, version, "reject", why))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- one call

    async def _call(self, call: Call[T]) -> T:
        budget = self._budget(call.request)
        while True:
            try:
                return call.parse(requests.json_body(await self._once(call.request, budget.remaining()), call.request))
            except CallFailed as error:
                pause = budget.pause_after(error)
            await asyncio.sleep(pause)

    async def _once(self, call: ApiRequest, seconds: float) -> httpx.Response:
        """One attempt: the response, complete within `seconds`."""
        try:
            with connection.translated_errors(call, self._address):
                async with asyncio.timeout(seconds), self._open(call, seconds) as response:
                    return requests.complete_response(response, b"".join([chunk async for chunk in response.aiter_raw()]))
        except TimeoutError:
            raise TimedOut("no answer in time", where=self._address, request_id=call.request_id) from None

    async def _pieces(self, call: ApiRequest, seconds: float) -> AsyncIterator[Piece]:
        parser = EventParser()
        with connection.translated_errors(call, self._address):
            async with self._open(call, seconds) as response:
                await self._check(response, call)
                async for chunk in response.aiter_raw():
                    for piece in parser.feed(chunk):
                        yield piece
                parser.end()

    async def _check(self, response: httpx.Response, call: ApiRequest) -> None:
        if response.status_code >= 400:
            await response.aread()
            raise requests.error_of(response, call)

    def _open(self, call: ApiRequest, seconds: float) -> Any:
        """The response, without its body."""
        body = call.body if call.file is None else _read(call.file)
        return self._http.stream(
            call.method, call.path, content=body, headers=call.to_headers(), timeout=connection.httpx_timeout(seconds)
        )


async def _read(file: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(file.open, "rb") as handle:
        while chunk := await asyncio.to_thread(handle.read, READ_BYTES):
            yield chunk

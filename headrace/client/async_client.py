"""The asynchronous client, with the methods of `Client`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from headrace.client import connection, requests
from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.client import FIRST_POLL_SECONDS, LAST_POLL_SECONDS, READ_BYTES
from headrace.client.connection import Token, Verify
from headrace.client.errors import CallFailed, StreamInterrupted, TimedOut
from headrace.client.requests import ApiRequest, EventParser
from headrace.client.retries import RetryBudget
from headrace.files import atomic_write


class AsyncClient:
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
        self._http = httpx.AsyncClient(**connection.client_options(address, token, verify))
        self._address = str(self._http.base_url)
        self._timeout = timeout
        self._retries = retries

    async def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._json(ApiRequest("GET", "/v1/models")))["models"]
        return found

    async def describe(self, model: str) -> dict[str, Any]:
        return await self._json(ApiRequest("GET", requests.path_of(model)))

    async def predict(self, model: str, instances: Any, *, request_id: str | None = None) -> Prediction:
        """Does the same as `Client.predict`; `request_id` is an id of the caller's for the request."""
        return requests.parse_answer(Prediction, await self._json(requests.predict_request(model, instances, request_id)))

    async def explain(
        self, model: str, instance: Any, *, target: str | int | None = None, evaluations: int | None = None, **options: Any
    ) -> Explanation:
        options = {"target": target, "evaluations": evaluations, **options}
        return requests.parse_answer(Explanation, await self._json(requests.explain_request(model, instance, options)))

    async def stream(self, model: str, instance: Any) -> AsyncIterator[Piece]:
        call = requests.stream_request(model, instance)
        budget = RetryBudget(self._timeout, self._retries)
        while True:
            begun = False
            try:
                async for piece in self._pieces(call, budget.remaining()):
                    begun = True
                    yield piece
                return
            except CallFailed as error:
                if isinstance(error, StreamInterrupted):
                    raise
                if begun:
                    raise self._interrupted(error, call) from None
                await asyncio.sleep(budget.pause_after(error))

    async def feedback(self, about: str, truth: Any, row: int = 0) -> dict[str, Any]:
        return await self._json(requests.feedback_request(about, truth, row))

    async def submit(self, model: str, file: str | Path, *, media_type: str | None = None, key: str | None = None) -> Batch:
        return requests.parse_answer(Batch, await self._json(requests.submit_request(model, Path(file), media_type, key)))

    async def batch(self, model: str, batch: str) -> Batch:
        return requests.parse_answer(Batch, await self._json(requests.batches_request(model, batch)))

    async def batches(self, model: str) -> list[Batch]:
        return [requests.parse_answer(Batch, one) for one in (await self._json(requests.batches_request(model)))["batches"]]

    async def wait(self, model: str, batch: str, seconds: float = 3600.0) -> Batch:
        deadline, pause = time.monotonic() + seconds, FIRST_POLL_SECONDS
        while not (found := await self.batch(model, batch)).has_ended:
            if time.monotonic() + pause > deadline:
                raise TimedOut(f"batch {batch} is {found.state} after {seconds:g} s, with {found.rows_done} rows done")
            await asyncio.sleep(pause)
            pause = min(LAST_POLL_SECONDS, pause * 1.5)
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
        return requests.parse_answer(Batch, await self._json(requests.batches_request(model, batch, method="DELETE")))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- one call

    async def _json(self, call: ApiRequest) -> dict[str, Any]:
        budget = RetryBudget(connection.total_timeout(call, self._timeout), self._retries, call.is_safe)
        while True:
            try:
                return requests.json_body(await self._once(call, budget.remaining()), call)
            except CallFailed as error:
                await asyncio.sleep(budget.pause_after(error))

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

    def _interrupted(self, error: CallFailed, call: ApiRequest) -> StreamInterrupted:
        message = f"the stream was interrupted: {error.message}"
        return StreamInterrupted(message, where=self._address, request_id=call.request_id)

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

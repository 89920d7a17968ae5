"""The synchronous client; async_client.py has one with the same methods for asynchronous code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from headrace.client import calls, connection, requests
from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.calls import Call, Core, T
from headrace.client.connection import Token, Verify
from headrace.client.errors import CallFailed, TimedOut
from headrace.client.requests import ApiRequest, Columns, EventParser
from headrace.files import atomic_write

READ_BYTES = 1 << 20


class Client(Core):
    """Calls models behind a gateway. Keeps its connections open, and can be used from several threads.

    Args:
        address: of the gateway; by default `HEADRACE_ADDRESS`, or `http://127.0.0.1:8080`.
        token: a token, or a function that returns one; by default `HEADRACE_TOKEN`.
        timeout: time limit of a call in seconds, all attempts and pauses included; for a stream, between two pieces.
        retries: attempts after the first one, for requests that can be sent twice without harm.
        verify: whether to verify the gateway's certificate, or the PEM file of the authority that signed it.

    Every method raises a `CallFailed` (errors.py) if the call fails.
    """

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
        self._http = httpx.Client(**connection.client_options(address, token, verify))
        self._address = str(self._http.base_url)

    def models(self) -> list[dict[str, Any]]:
        """Returns the models that the token allows, with their contracts, versions, protocols and health."""
        return self._call(calls.models())

    def describe(self, model: str) -> dict[str, Any]:
        """Returns the contract of a model and its further protocols, as one of its replicas reports them."""
        return self._call(calls.describe(model))

    def predict(self, model: str, instances: Any, *, request_id: str | None = None) -> Prediction:
        """Returns predictions for one instance or several: mappings, pandas rows, a frame of pandas or polars, or a table of
        pyarrow; values can be numpy arrays. `request_id` is an id of the caller's for the request.

        Raises:
            InvalidInput: an instance breaks the contract; `path` names the field.
        """
        return self._call(calls.predict(model, instances, request_id))

    def explain(
        self, model: str, instance: Any, *, target: str | int | None = None, evaluations: int | None = None, **options: Any
    ) -> Explanation:
        """Explains the prediction for one instance: how much each part contributes.

        Args:
            target: the class to explain; by default the most probable one.
            evaluations: largest number of rows that the model computes for this; they count for the quota.
            options: further options of the task type, for example `baseline` for a table or `patch` for an image.
        """
        return self._call(calls.explain(model, instance, {"target": target, "evaluations": evaluations, **options}))

    def stream(self, model: str, instance: Any) -> Iterator[Piece]:
        """Yields a text while it is generated; the last piece has a `finish_reason`.

        Raises:
            StreamInterrupted: the stream ends before its last piece.
        """
        request = requests.stream_request(model, instance)
        retries = self._stream_retries(request)
        while True:
            try:
                for piece in self._pieces(request, retries.remaining()):
                    retries.has_begun = True
                    yield piece
                return
            except CallFailed as error:
                pause = retries.pause_after(error)
            time.sleep(pause)

    def feedback(self, about: str, truth: Any, row: int = 0) -> dict[str, Any]:
        """Sends the true answer to an earlier request: a label or a number, or a list of them for the rows from `row` on.
        With several labels per row it is a list of labels, with several values a mapping from each target to its value.

        Args:
            about: the `id` of the answer, or its `request_id`.
        """
        return self._call(calls.feedback(about, truth, row))

    def submit(
        self,
        model: str,
        rows: Any,
        *,
        media_type: str | None = None,
        key: str | None = None,
        columns: Columns = "refuse",
    ) -> Batch:
        """Submits rows, and returns their batch.

        Args:
            rows: the path of a file (CSV, Parquet, JSON lines, a zip of pictures), or a frame of pandas or polars or a table of
                pyarrow, which is sent as Parquet.
            key: with that of an earlier batch, returns that batch.
            columns: what happens to columns that the model does not know; with `keep` the result is the file with the answers
                beside its columns, with `ignore` the answers alone. By default the file is refused.
        """
        return self._call(calls.submit(model, rows, media_type, key, columns))

    def batch(self, model: str, batch: str) -> Batch:
        """Returns the state of a batch."""
        return self._call(calls.batch(model, batch))

    def batches(self, model: str) -> list[Batch]:
        """Returns the batches of the tenant for a model, newest first."""
        return self._call(calls.batches(model))

    def wait(self, model: str, batch: str, seconds: float = 3600.0, progress: Callable[[Batch], object] | None = None) -> Batch:
        """Waits until a batch is done, failed or cancelled, and returns it; `progress` is called with each state.

        Raises:
            TimedOut: it has not ended within `seconds`; it continues to run.
        """
        polling = calls.Polling(seconds, progress)
        while not (found := self.batch(model, batch)).has_ended:
            time.sleep(polling.pause_after(found))
        return found

    def result(self, model: str, batch: str, to: str | Path) -> Path:
        """Writes the answers of a finished batch to the file `to`, completely or not at all."""
        call = requests.batches_request(model, batch, "/result")
        with (
            atomic_write(Path(to)) as temporary,
            connection.translated_errors(call, self._address),
            self._open(call, self._timeout) as response,
            temporary.open("wb") as handle,
        ):
            self._check(response, call)
            for chunk in response.iter_raw():
                handle.write(chunk)
        return Path(to)

    def cancel(self, model: str, batch: str) -> Batch:
        """Cancels a batch and removes its file and answers."""
        return self._call(calls.cancel(model, batch))

    def candidates(self) -> list[dict[str, Any]]:
        """Returns the versions that passed the gate and wait for approval, or have been reviewed; takes a token with a role."""
        return self._call(calls.candidates())

    def history(self, model: str) -> list[dict[str, Any]]:
        """Returns the release journal of a model, oldest entry first; takes a token with a role."""
        return self._call(calls.history(model))

    def approve(self, model: str, version: str, why: str = "") -> dict[str, Any]:
        """Approves a version that waits for approval; takes the role reviewer or operator."""
        return self._call(calls.review(model, version, "approve", why))

    def reject(self, model: str, version: str, why: str) -> dict[str, Any]:
        """Rejects a version that waits for approval; takes the role reviewer or operator."""
        return self._call(calls.review(model, version, "reject", why))

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- one call

    def _call(self, call: Call[T]) -> T:
        budget = self._budget(call.request)
        while True:
            try:
                return call.parse(requests.json_body(self._once(call.request, budget.remaining()), call.request))
            except CallFailed as error:
                pause = budget.pause_after(error)
            time.sleep(pause)

    def _once(self, call: ApiRequest, seconds: float) -> httpx.Response:
        """One attempt: the response, complete within `seconds`."""
        deadline = time.monotonic() + seconds
        with connection.translated_errors(call, self._address), self._open(call, seconds) as response:
            chunks = []
            for chunk in response.iter_raw():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise TimedOut("the answer did not end in time", request_id=call.request_id)
            return requests.complete_response(response, b"".join(chunks))

    def _pieces(self, call: ApiRequest, seconds: float) -> Iterator[Piece]:
        with connection.translated_errors(call, self._address), self._open(call, seconds) as response:
            self._check(response, call)
            parser = EventParser()
            for chunk in response.iter_raw():
                yield from parser.feed(chunk)
                if parser.is_complete:
                    return
            parser.end()

    def _check(self, response: httpx.Response, call: ApiRequest) -> None:
        if response.status_code >= 400:
            response.read()
            raise requests.error_of(response, call)

    def _open(self, call: ApiRequest, seconds: float) -> Any:
        """The response, without its body."""
        body = call.body if call.file is None else _read(call.file)
        return self._http.stream(
            call.method, call.path, content=body, headers=call.to_headers(), timeout=connection.httpx_timeout(seconds)
        )


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while chunk := handle.read(READ_BYTES):
            yield chunk

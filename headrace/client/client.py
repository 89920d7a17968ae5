"""The synchronous client; async_client.py has one with the same methods for asynchronous code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from headrace.client import connection, requests
from headrace.client.answers import Batch, Explanation, Piece, Prediction
from headrace.client.connection import Token, Verify
from headrace.client.errors import CallFailed, StreamInterrupted, TimedOut
from headrace.client.requests import ApiRequest, EventParser
from headrace.client.retries import RetryBudget
from headrace.files import atomic_write

FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.2, 5.0
"""Pauses between polls of a batch: the first and the longest."""
READ_BYTES = 1 << 20


class Client:
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
        self._http = httpx.Client(**connection.client_options(address, token, verify))
        self._address = str(self._http.base_url)
        self._timeout = timeout
        self._retries = retries

    def models(self) -> list[dict[str, Any]]:
        """Returns the models that the token allows, with their contracts, versions, protocols and health."""
        found: list[dict[str, Any]] = self._json(ApiRequest("GET", "/v1/models"))["models"]
        return found

    def describe(self, model: str) -> dict[str, Any]:
        """Returns the contract of a model and its further protocols, as one of its replicas reports them."""
        return self._json(ApiRequest("GET", requests.path_of(model)))

    def predict(self, model: str, instances: Any) -> Prediction:
        """Returns predictions for one instance or several: mappings, pandas rows or a frame; values can be numpy arrays.

        Raises:
            InvalidInput: an instance breaks the contract; `path` names the field.
        """
        return requests.parse_answer(Prediction, self._json(requests.predict_request(model, instances)))

    def explain(
        self, model: str, instance: Any, *, target: str | int | None = None, evaluations: int | None = None, **options: Any
    ) -> Explanation:
        """Explains the prediction for one instance: how much each part contributes.

        Args:
            target: the class to explain; by default the most probable one.
            evaluations: largest number of rows that the model computes for this; they count for the quota.
            options: further options of the task type, for example `baseline` for a table or `patch` for an image.
        """
        options = {"target": target, "evaluations": evaluations, **options}
        return requests.parse_answer(Explanation, self._json(requests.explain_request(model, instance, options)))

    def stream(self, model: str, instance: Any) -> Iterator[Piece]:
        """Yields a text while it is generated; the last piece has a `finish_reason`.

        Raises:
            StreamInterrupted: the stream ends before its last piece.
        """
        call = requests.stream_request(model, instance)
        budget = RetryBudget(self._timeout, self._retries)
        while True:
            begun = False
            try:
                for piece in self._pieces(call, budget.remaining()):
                    begun = True
                    yield piece
                return
            except CallFailed as error:
                if isinstance(error, StreamInterrupted):
                    raise
                if begun:
                    raise self._interrupted(error, call) from None
                time.sleep(budget.pause_after(error))

    def feedback(self, about: str, truth: Any, row: int = 0) -> dict[str, Any]:
        """Sends the true answer to an earlier request: a label or a number, or a list of them for the rows from `row` on.

        Args:
            about: the `id` of the answer, or its `request_id`.
        """
        return self._json(requests.feedback_request(about, truth, row))

    def submit(self, model: str, file: str | Path, *, media_type: str | None = None, key: str | None = None) -> Batch:
        """Submits a file of rows, Parquet or JSON lines. With the `key` of an earlier batch, returns that batch."""
        return requests.parse_answer(Batch, self._json(requests.submit_request(model, Path(file), media_type, key)))

    def batch(self, model: str, batch: str) -> Batch:
        """Returns the state of a batch."""
        return requests.parse_answer(Batch, self._json(requests.batches_request(model, batch)))

    def batches(self, model: str) -> list[Batch]:
        """Returns the batches of the tenant for a model, newest first."""
        return [requests.parse_answer(Batch, one) for one in self._json(requests.batches_request(model))["batches"]]

    def wait(self, model: str, batch: str, seconds: float = 3600.0) -> Batch:
        """Waits until a batch is done, failed or cancelled, and returns it.

        Raises:
            TimedOut: it has not ended within `seconds`; it continues to run.
        """
        deadline, pause = time.monotonic() + seconds, FIRST_POLL_SECONDS
        while not (found := self.batch(model, batch)).has_ended:
            if time.monotonic() + pause > deadline:
                raise TimedOut(f"batch {batch} is {found.state} after {seconds:g} s, with {found.rows_done} rows done")
            time.sleep(pause)
            pause = min(LAST_POLL_SECONDS, pause * 1.5)
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
        return requests.parse_answer(Batch, self._json(requests.batches_request(model, batch, method="DELETE")))

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

    def _json(self, call: ApiRequest) -> dict[str, Any]:
        budget = RetryBudget(connection.total_timeout(call, self._timeout), self._retries, call.is_safe)
        while True:
            try:
                return requests.json_body(self._once(call, budget.remaining()), call)
            except CallFailed as error:
                time.sleep(budget.pause_after(error))

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

    def _interrupted(self, error: CallFailed, call: ApiRequest) -> StreamInterrupted:
        message = f"the stream was interrupted: {error.message}"
        return StreamInterrupted(message, where=self._address, request_id=call.request_id)

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

"""The client for ordinary code; one for `async` code, with the same methods, is in awaiting.py."""

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
from headrace.client.errors import BrokenOff, CallFailed, TimedOut
from headrace.client.requests import Call
from headrace.client.retries import Patience
from headrace.files import whole

FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.2, 5.0
"""Pauses between two looks at a batch, from the first to the longest."""
READ_BYTES = 1 << 20


class Client:
    """Calls models behind a door. Connections are kept and shared; it may be used from several threads.

    Args:
        address: of the door; else `HEADRACE_ADDRESS`, else `http://127.0.0.1:8080`.
        token: or a function that gives it, for one that changes; else `HEADRACE_TOKEN`.
        timeout: seconds that a call may take, all its tries and pauses together; of a stream, seconds of silence.
        retries: tries after the first one; made only where a request may arrive twice.
        verify: False, or the PEM file of the authority that signed the door's certificate.

    Every method raises a `CallFailed` (errors.py) when there is no answer.
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
        self._http = httpx.Client(**connection.options(address, token, verify))
        self._address = str(self._http.base_url)
        self._timeout = timeout
        self._retries = retries

    def models(self) -> list[dict[str, Any]]:
        """The models that the token opens, with their contracts, versions, protocols and health."""
        found: list[dict[str, Any]] = self._json(Call("GET", "/v1/models"))["models"]
        return found

    def describe(self, model: str) -> dict[str, Any]:
        """What a model takes and gives, in the words of one of its replicas."""
        return self._json(Call("GET", requests.path_of(model)))

    def predict(self, model: str, instances: Any) -> Prediction:
        """Predictions for one instance or several: mappings, rows or a frame of pandas, with numpy arrays as values.

        Raises:
            InvalidInput: an instance breaks the contract; `path` names the field.
        """
        return requests.read(Prediction, self._json(requests.predict(model, instances)))

    def explain(
        self, model: str, instance: Any, *, target: str | int | None = None, evaluations: int | None = None, **options: Any
    ) -> Explanation:
        """Which parts of one instance its answer rests on.

        Args:
            target: the class to explain; the likeliest when it is not given.
            evaluations: rows that the model may answer for this, at most; they count for the tenant.
            options: what else the model's kind takes, such as the `baseline` of a table or the `patch` of an image.
        """
        asked = {"target": target, "evaluations": evaluations, **options}
        return requests.read(Explanation, self._json(requests.explain(model, instance, asked)))

    def stream(self, model: str, instance: Any) -> Iterator[Piece]:
        """A text as it is written; the last piece has a `finish_reason`.

        Raises:
            BrokenOff: the last piece does not come, however many have.
        """
        call = requests.stream(model, instance)
        patience = Patience(self._timeout, self._retries)
        while True:
            begun = False
            try:
                for piece in self._pieces(call, patience.left()):
                    begun = True
                    yield piece
                return
            except CallFailed as error:
                if begun or isinstance(error, BrokenOff):
                    raise (
                        error
                        if isinstance(error, BrokenOff)
                        else BrokenOff(f"the text broke off: {error.message}", where=self._address, request_id=call.request_id)
                    ) from None
                time.sleep(patience.pause_after(error))

    def feedback(self, about: str, truth: Any, row: int = 0) -> dict[str, Any]:
        """Tells the true answer to an earlier request: a label or a number; a list of them for rows from `row` on.

        Args:
            about: the `id` of the answer, or its `request_id`.
        """
        return self._json(requests.feedback(about, truth, row))

    def submit(self, model: str, file: str | Path, *, media_type: str | None = None, key: str | None = None) -> Batch:
        """Hands in a file of rows, Parquet or JSON lines. The same `key` again gives the batch there is."""
        return requests.read(Batch, self._json(requests.submit(model, Path(file), media_type, key)))

    def batch(self, model: str, batch: str) -> Batch:
        """How a batch stands."""
        return requests.read(Batch, self._json(requests.batches(model, batch)))

    def batches(self, model: str) -> list[Batch]:
        """The tenant's own batches of a model, newest first."""
        return [requests.read(Batch, one) for one in self._json(requests.batches(model))["batches"]]

    def wait(self, model: str, batch: str, seconds: float = 3600.0) -> Batch:
        """The batch once it has ended: done, failed or cancelled.

        Raises:
            TimedOut: it has not within `seconds`; it goes on without anybody waiting.
        """
        deadline, pause = time.monotonic() + seconds, FIRST_LOOK_SECONDS
        while not (found := self.batch(model, batch)).has_ended:
            if time.monotonic() + pause > deadline:
                raise TimedOut(f"batch {batch} is {found.state} after {seconds:g} s, with {found.rows_done} rows done")
            time.sleep(pause)
            pause = min(LAST_LOOK_SECONDS, pause * 1.5)
        return found

    def result(self, model: str, batch: str, to: str | Path) -> Path:
        """Writes the answers of a batch that is done to the file `to`, whole or not at all."""
        call = requests.batches(model, batch, "/result")
        with (
            whole(Path(to)) as beside,
            connection.failures(call, self._address),
            self._open(call, self._timeout) as response,
            beside.open("wb") as handle,
        ):
            self._check(response, call)
            for chunk in response.iter_raw():
                handle.write(chunk)
        return Path(to)

    def cancel(self, model: str, batch: str) -> Batch:
        """Ends a batch and removes its file and answers."""
        return requests.read(Batch, self._json(requests.batches(model, batch, method="DELETE")))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # -- one call

    def _json(self, call: Call) -> dict[str, Any]:
        patience = Patience(connection.seconds_for(call, self._timeout), self._retries, call.is_safe)
        while True:
            try:
                return requests.body_of(self._once(call, patience.left()), call)
            except CallFailed as error:
                time.sleep(patience.pause_after(error))

    def _once(self, call: Call, seconds: float) -> httpx.Response:
        """One try, read to its end within `seconds`."""
        deadline = time.monotonic() + seconds
        with connection.failures(call, self._address), self._open(call, seconds) as response:
            chunks = []
            for chunk in response.iter_raw():
                chunks.append(chunk)
                if time.monotonic() > deadline:
                    raise TimedOut("the answer did not end in time", request_id=call.request_id)
            return requests.whole_response(response, b"".join(chunks))

    def _pieces(self, call: Call, seconds: float) -> Iterator[Piece]:
        with connection.failures(call, self._address), self._open(call, seconds) as response:
            self._check(response, call)
            yield from requests.events(response.iter_raw())

    def _check(self, response: httpx.Response, call: Call) -> None:
        if response.status_code >= 400:
            response.read()
            raise requests.refusal(response, call)

    def _open(self, call: Call, seconds: float) -> Any:
        """The response, its body unread."""
        body = call.body if call.file is None else _read(call.file)
        return self._http.stream(
            call.method, call.path, content=body, headers=call.to_headers(), timeout=connection.limits(seconds)
        )


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        while chunk := handle.read(READ_BYTES):
            yield chunk

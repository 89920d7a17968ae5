"""What each method of the clients sends, and what it makes of the response: shared by both, without input or output."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from headrace.client import connection, requests
from headrace.client.answers import Batch, Explanation, Prediction
from headrace.client.errors import CallFailed, StreamInterrupted, TimedOut
from headrace.client.requests import ApiRequest, Columns
from headrace.client.retries import RetryBudget

T = TypeVar("T")
Json = dict[str, Any]
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.2, 5.0
"""Pauses between polls of a batch: the first and the longest."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and how its response in JSON becomes the result."""

    request: ApiRequest
    parse: Callable[[Json], T]


def models() -> Call[list[Json]]:
    return Call(ApiRequest("GET", "/v1/models"), itemgetter("models"))


def describe(model: str) -> Call[Json]:
    return Call(ApiRequest("GET", requests.path_of(model)), dict)


def predict(model: str, instances: Any, request_id: str | None) -> Call[Prediction]:
    return Call(requests.predict_request(model, instances, request_id), partial(requests.parse_answer, Prediction))


def explain(model: str, instance: Any, options: Mapping[str, Any]) -> Call[Explanation]:
    return Call(requests.explain_request(model, instance, options), partial(requests.parse_answer, Explanation))


def feedback(about: str, truth: Any, row: int) -> Call[Json]:
    return Call(requests.feedback_request(about, truth, row), dict)


def submit(model: str, rows: Any, media_type: str | None, key: str | None, columns: Columns) -> Call[Batch]:
    if isinstance(rows, str | Path):
        return Call(requests.submit_request(model, Path(rows), media_type, key, columns), _batch)
    return Call(requests.submit_frame_request(model, rows, key, columns), _batch)


def batch(model: str, batch_id: str) -> Call[Batch]:
    return Call(requests.batches_request(model, batch_id), _batch)


def batches(model: str) -> Call[list[Batch]]:
    return Call(requests.batches_request(model), lambda found: [_batch(one) for one in found["batches"]])


def cancel(model: str, batch_id: str) -> Call[Batch]:
    return Call(requests.batches_request(model, batch_id, method="DELETE"), _batch)


def candidates() -> Call[list[Json]]:
    return Call(ApiRequest("GET", "/v1/candidates"), itemgetter("candidates"))


def history(model: str) -> Call[list[Json]]:
    return Call(requests.history_request(model), itemgetter("entries"))


def review(model: str, version: str, act: str, why: str) -> Call[Json]:
    return Call(requests.review_request(model, version, act, why), dict)


def _batch(found: Json) -> Batch:
    return requests.parse_answer(Batch, found)


# -- calls of several requests


@dataclass
class Polling:
    """The pauses while a batch has not ended."""

    seconds: float
    progress: Callable[[Batch], object] | None = None
    pause: float = FIRST_POLL_SECONDS
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def pause_after(self, found: Batch) -> float:
        """Returns the seconds to wait before the next look.

        Raises:
            TimedOut: no time is left for it.
        """
        if self.progress is not None:
            self.progress(found)
        pause, self.pause = self.pause, min(LAST_POLL_SECONDS, self.pause * 1.5)
        if time.monotonic() + pause > self.deadline:
            rows = f"with {found.rows_done} rows done"
            raise TimedOut(f"batch {found.id} is {found.state} after {self.seconds:g} s, {rows}")
        return pause


class StreamRetries:
    """Decides what follows the failure of a stream: one that has begun is not sent again."""

    def __init__(self, request: ApiRequest, address: str, budget: RetryBudget) -> None:
        self._request, self._address, self._budget = request, address, budget
        self.has_begun = False

    def remaining(self) -> float:
        return self._budget.remaining()

    def pause_after(self, error: CallFailed) -> float:
        """Returns the seconds to wait before the next attempt.

        Raises:
            CallFailed: there is none.
        """
        if isinstance(error, StreamInterrupted):
            raise error
        if self.has_begun:
            message = f"the stream was interrupted: {error.message}"
            raise StreamInterrupted(message, where=self._address, request_id=self._request.request_id) from None
        return self._budget.pause_after(error)


class Core:
    """Settings that both clients have."""

    _address: str

    def __init__(self, timeout: float, retries: int) -> None:
        self._timeout, self._retries = timeout, retries

    def _budget(self, request: ApiRequest) -> RetryBudget:
        return RetryBudget(connection.total_timeout(request, self._timeout), self._retries, request.is_safe)

    def _stream_retries(self, request: ApiRequest) -> StreamRetries:
        return StreamRetries(request, self._address, RetryBudget(self._timeout, self._retries))

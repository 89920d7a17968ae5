"""The interface between the routes of a protocol and the app that holds the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from bentos.models.served_model import ServedModel
from bentos.scheduling.streams import Streams
from bentos.telemetry.samples import Samples
from bentos.telemetry.token_limits import Grant
from headrace.runtime.contract import Feeds
from headrace.runtime.http_messages import TrackedRequest

Result = TypeVar("Result")
TOKENS = ("tokens", "prompt_tokens")
"""Counts in the answers of models that generate text."""
MAX_INSTANCES = int(os.environ.get("HEADRACE_MAX_INSTANCES", 10_000))
"""Most rows of one request, whatever the protocol."""


class ModelServer(Protocol):
    """Answers requests to one model: authorization, quotas, threads and metering; `bentos.app.PredictionApp` implements it."""

    loaded_at: int
    """When the model was loaded, in seconds since 1970."""
    is_streaming: bool
    """Whether the model is a `bentos.scheduling.streams.Streaming`."""
    streams: Streams
    samples: Samples | None
    """The sample of answered rows, to which each route offers its own."""

    @property
    def ready(self) -> bool:
        """Whether requests are answered: a model is loaded and nothing hangs."""
        ...

    @property
    def model(self) -> ServedModel: ...

    @property
    def is_batching(self) -> bool:
        """Whether concurrent requests run together, by `run_batched`."""
        ...

    def model_for(self, request: TrackedRequest, name: str) -> ServedModel:
        """Returns the model that a request names, if its caller may use it.

        Raises:
            Refused: 403, the token does not give access to this name, or only to some names and another server has this model;
                404, the token gives access to all models and this server has another one; 503, no model is loaded yet.
        """
        ...

    async def take_quota(self, request: TrackedRequest, rows: int) -> None:
        """Takes `rows` from the caller's daily quota, before the work.

        Raises:
            Refused: 429, fewer rows are left; 503, the quota store does not answer.
        """
        ...

    async def reserve_tokens(self, request: TrackedRequest, prompt: int, wanted: Sequence[int]) -> Grant | None:
        """Takes tokens of prompts and of texts from the caller's limits, before the work; None if the caller has none.

        Args:
            prompt: tokens of all prompts together.
            wanted: most tokens of each text.

        Raises:
            Refused: 413, no minute or day allows as many; 429, fewer are left; 503, the quota store does not answer.
        """
        ...

    def record_usage(
        self, request: TrackedRequest, *, rows: int = 0, tokens: int = 0, prompt_tokens: int = 0, answers: Sequence[Any] = ()
    ) -> None:
        """Records what a request used, before its answer is sent.

        Args:
            rows: rows of the whole answer; for a stream, given at its start, and 0 afterwards.
            tokens: tokens of generated text; for a stream, as they are generated.
            prompt_tokens: tokens of the prompts.
            answers: a label, a value, or an answer as the model returns it, for each row.
        """
        ...

    def observe_text(self, first_seconds: float, further_seconds: float, tokens: int) -> None:
        """Observes a streamed text of `tokens`: the seconds to its first token, and those from there to its last one."""
        ...

    def count_unseen(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Counts values that no training row had, by field and kind."""
        ...

    def runs_inline(self, size: int) -> bool:
        """Whether `run` executes work for a body of `size` bytes on the event loop."""
        ...

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        """Runs `work` on the event loop if it is small (`size` bytes of body), else in the worker thread.

        Raises:
            Refused: 503, the queue is full; 504, it took too long.
            ClientDisconnect: the client disconnected, and the work is abandoned.
        """
        ...

    async def convert(self, size: int, convert: Callable[[], Result]) -> Result:
        """Runs `convert`, which parses a body of `size` bytes or encodes its answers: on the event loop if that is small,
        however slow the model is. In the thread it would wait for other requests' predictions, and miss the batch that forms.

        Raises:
            Refused, ClientDisconnect: as `run`.
        """
        ...

    async def run_batched(self, feeds: Feeds, rows: int) -> NDArray[Any]:
        """Returns the model's output for `feeds`, run together with other waiting requests.

        Raises:
            Refused: 503, the queue is full; 504, it took too long.
        """
        ...

    def body_memory(self) -> AbstractContextManager[Callable[[int], None]]:
        """Returns a context that gives the `reserve` function of `read_body`, and releases the reserved memory at its end."""
        ...

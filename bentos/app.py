"""The ASGI app that answers predictions: rooms of routes around one model, and one place that turns errors into answers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from bentos.http import Refused, header_bytes, request_id_of
from bentos.metrics import Metrics
from bentos.model import ServedModel
from bentos.streams import Streams
from bentos.v1 import V1
from headrace.guard import Caller, Guard, NotAllowed, bearer

logger = logging.getLogger("headrace.serve")
Result = TypeVar("Result")

INLINE_BYTES = 16 * 1024
INLINE_SECONDS = 0.002
"""A request no larger, to a model no slower, is answered on the event loop: a thread would cost more than it frees."""
MAX_IN_FLIGHT = 512
OPEN_PATHS = frozenset({"/metrics", "/readyz", "/livez", "/healthz"})
"""Asked for by the balancer and by Prometheus, on this machine alone, without a token."""
MAX_HELD_BYTES = 128 * 1024 * 1024
"""Bodies held at once. A request beyond either gets 503 at once, and the balancer sends it to another replica."""


class PredictionApp:
    """An ASGI app; `model` is given at start-up, before the first request."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        guard = os.environ.get("HEADRACE_GUARD")
        self.guard = Guard(Path(guard) if guard else None)
        self._model: ServedModel | None = None
        self._version_header: list[tuple[bytes, bytes]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self.streams = Streams(self._thread)
        self._in_flight = 0
        self._held_bytes = 0
        # A further protocol is one file beside v1.py and one entry here.
        self.routes: list[Route] = [*V1(self).routes, Route("/metrics", self.show_metrics, methods=["GET"])]

    @property
    def ready(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> ServedModel:
        if self._model is None:
            raise Refused(503, "not_ready", "the model is not loaded yet", {"retry-after": "1"})
        return self._model

    @model.setter
    def model(self, model: ServedModel) -> None:
        self._model = model
        self._version_header = [(b"x-model-version", model.version.encode("latin-1", "replace"))]
        self.metrics.name_model(model.name, model.version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start = time.perf_counter()
        request = Request(scope, receive)
        request.state.request_id = request_id_of(request)
        self._in_flight += 1
        try:
            response = await self._answer(request)
            response.raw_headers.append((b"x-request-id", request.state.request_id.encode()))
            response.raw_headers += self._version_header
            self.metrics.count(response.status_code, time.perf_counter() - start)
            await response(scope, receive, send)
        except ClientDisconnect:
            self.metrics.count(499, time.perf_counter() - start)
        finally:
            self._in_flight -= 1

    def model_for(self, request: Request, name: str) -> ServedModel:
        """The model that a request names, if its caller may use it.

        Raises:
            Refused: 403, the token does not open this name, or only some names and this one is another server's; 404, it opens
                all, and this server has another model; 503, no model is loaded yet.
        """
        model, caller = self.model, request.state.caller
        if name == model.name and caller.may(name):
            return model
        if caller.opens_all:
            raise Refused(404, "unknown_model", f"no model {name!r} here; this server has {model.name!r}")
        raise Refused(403, "forbidden", "this token does not open this")

    async def spend(self, request: Request, rows: int) -> None:
        """Takes `rows` from the caller's daily quota, before the work.

        Raises:
            Refused: 429, the quota does not hold so many; 503, nobody can say whether it does.
        """

    def account(self, request: Request, *, rows: int = 0, tokens: int = 0, answers: Sequence[Any] = ()) -> None:
        """Counts what a request was given, before its answer leaves.

        Args:
            rows: of the whole answer; for a stream, with its start.
            tokens: written, for text; for a stream, as they are written.
            answers: each a label, a value, or an answer as the model gives it.
        """
        self.metrics.count_rows(rows)

    async def work(self, size: int, predict: Callable[[], Result]) -> Result:
        """Runs `predict` here when it is small (`size` bytes of body), else in the one thread for large work."""
        if size <= INLINE_BYTES and self.model.sample_seconds <= INLINE_SECONDS:
            return predict()
        return await asyncio.get_running_loop().run_in_executor(self._thread, predict)

    @contextmanager
    def held_body(self) -> Iterator[Callable[[int], None]]:
        """Gives what `read_body` tells of each piece; the memory counts as held until the block ends."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > MAX_HELD_BYTES:
                raise _overloaded()
            self._held_bytes += size
            held += size

        try:
            yield hold
        finally:
            self._held_bytes -= held

    async def show_metrics(self, request: Request) -> Response:
        self.metrics.in_flight.set(self._in_flight)
        return self.metrics.render()

    async def _answer(self, request: Request) -> Response:
        """The response to any request: a route's, a refusal's, or a 500 that tells the client no more than its id."""
        try:
            if request.scope["path"] not in OPEN_PATHS:
                request.state.caller = self._caller(request)
            if self._in_flight > MAX_IN_FLIGHT:
                raise _overloaded()
            return await self._find(request)(request)
        except Refused as refused:
            return refused.to_response(request.state.request_id)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("request %s failed", request.state.request_id)
            hidden = Refused(500, "internal", "the server failed; its log names the request id")
            return hidden.to_response(request.state.request_id)

    def _caller(self, request: Request) -> Caller:
        try:
            return self.guard.check(bearer(header_bytes(request, b"authorization")))
        except NotAllowed:
            message = "a valid token is needed: authorization: Bearer ..."
            raise Refused(401, "unauthorized", message, {"www-authenticate": "Bearer"}) from None

    def _find(self, request: Request) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint itself, without the wrapper that Starlette's router would put around it."""
        allowed: list[str] = []
        for route in self.routes:
            match, found = route.matches(request.scope)
            if match is Match.FULL:
                request.scope.update(found)
                endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint
                return endpoint
            if match is Match.PARTIAL:
                allowed += sorted(route.methods or ())
        path = request.scope["path"]
        if allowed:
            raise Refused(
                405, "method_not_allowed", f"{request.method} is not allowed at {path[:200]}", {"allow": ", ".join(allowed)}
            )
        raise Refused(404, "not_found", f"nothing at {path[:200]}")


def _overloaded() -> Refused:
    return Refused(503, "overloaded", "too many requests at once; try again", {"retry-after": "1"})

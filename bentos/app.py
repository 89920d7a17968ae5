"""The ASGI app of a replica: authorization, routing, and one place that turns errors into responses."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from bentos.models.served_model import InvalidOutput, ServedModel
from bentos.protocols.explain import Explain
from bentos.protocols.openai import OpenAI
from bentos.protocols.v1 import V1
from bentos.protocols.v2 import V2
from bentos.scheduling.batching import Batcher
from bentos.scheduling.streams import Streaming, Streams
from bentos.scheduling.watchdog import Watchdog
from bentos.scheduling.worker_thread import WorkerThread, wait_for
from bentos.telemetry.metering import Metering
from bentos.telemetry.metrics import Metrics
from bentos.telemetry.request_log import RequestLog
from bentos.telemetry.token_limits import Grant
from bentos.telemetry.tracing import open_trace
from headrace.runtime.contract import Feeds
from headrace.runtime.http import BODY_LIMIT_BYTES, MEMORY_PER_BODY_BYTE, Refused, overloaded, request_id_of
from headrace.runtime.http_messages import CURRENT_REQUEST, BytesResponse, TrackedRequest
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier, bearer

logger = logging.getLogger("headrace.serve")
Result = TypeVar("Result")
Endpoint = Callable[[TrackedRequest], Awaitable[Response]]

INLINE_BYTES = 16 * 1024
"""A body up to this size is parsed on the event loop: handing it to a thread would cost more than it frees."""
INLINE_SECONDS = 0.002
"""A model whose sample takes at most this long predicts such a body on the event loop too."""
MAX_IN_FLIGHT = 512
MAX_TENANT_SHARE = 0.75
"""Largest share of `MAX_IN_FLIGHT` for one tenant, so that the others can always be served."""
MAX_BODY_MEMORY_BYTES = max(256 * 1024 * 1024, MEMORY_PER_BODY_BYTE * BODY_LIMIT_BYTES)
"""Memory for all bodies and their values. A request that exceeds a limit gets 503, and the balancer tries another replica."""
OPEN_PATHS = frozenset({"/metrics", "/readyz", "/livez", "/healthz"})
"""Paths without a token: the gateway and Prometheus ask for them on this machine, and they are not routed to clients."""
NO_FINITE_OUTPUT = Refused(
    422, "no_answer", "the model has no finite answer to these values; are they far from its training data?"
)
UNAUTHORIZED = Refused(
    401, "unauthorized", "a valid token is needed: authorization: Bearer ...", {"www-authenticate": "Bearer"}
)


class BodyMemory:
    """Context that reserves memory for a request's body and values, and releases it at the end."""

    __slots__ = ("_app", "_reserved")

    def __init__(self, app: PredictionApp) -> None:
        self._app = app
        self._reserved = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._reserve

    def __exit__(self, *_: object) -> None:
        self._app.body_memory_bytes -= self._reserved

    def _reserve(self, size: int) -> None:
        if self._app.body_memory_bytes + size > MAX_BODY_MEMORY_BYTES:
            raise overloaded()
        self._app.body_memory_bytes += size
        self._reserved += size


class PredictionApp:
    """An ASGI app that answers requests to one model; `model` is set at start-up, before the first request.

    It implements `bentos.protocols.server.ModelServer`, which documents the methods that routes call.
    """

    def __init__(self) -> None:
        keys = os.environ.get("HEADRACE_TOKEN_KEYS")
        self.token_verifier = TokenVerifier(Path(keys) if keys else None)
        self.metrics = Metrics()
        self.metering = Metering(self.metrics)
        self.samples = self.metering.samples
        self.log = RequestLog()
        self._trace = open_trace()
        self._worker = WorkerThread()
        self._thread = self._worker.thread
        self._watchdog = Watchdog(lambda: self._thread.silent_seconds, failure=self._failure)
        self.streams = Streams(self._thread, self.record_usage, self.observe_text)
        self._batcher: Batcher | None = None
        self._model: ServedModel | None = None
        self._inline_bytes = -1
        self.is_streaming = False  # set once: isinstance of a protocol costs as much as a small prediction
        self.loaded_at = 0
        self._version_header: list[tuple[bytes, bytes]] = []
        self._in_flight = 0
        self._tenant_in_flight: defaultdict[str, int] = defaultdict(int)
        self.body_memory_bytes = 0
        self.metrics.in_flight = lambda: self._in_flight
        self.metrics.queue_rows = self._queue_length
        # A further protocol is one file beside v1.py and one entry here.
        self.routes: list[Route] = [*V1(self).routes, *V2(self).routes, *OpenAI(self).routes, *Explain(self).routes]
        self._model_routes: dict[tuple[str, str], tuple[Endpoint, str, dict[str, str]]] = {}

    @property
    def ready(self) -> bool:
        return self._model is not None and not self._failure() and not self._watchdog.is_stuck

    @property
    def model(self) -> ServedModel:
        if self._model is None:
            raise Refused(503, "not_ready", "the model is not loaded yet", {"retry-after": "1"})
        return self._model

    @model.setter
    def model(self, model: ServedModel) -> None:
        self._model = model
        self.loaded_at = int(time.time())
        self._version_header = [(b"x-model-version", model.version.encode("latin-1", "replace"))]
        self.is_streaming = isinstance(model, Streaming)
        self._inline_bytes = INLINE_BYTES if model.sample_seconds <= INLINE_SECONDS else -1
        self.metering.set_model(model)
        self._batcher = None
        if model.batching is not None:
            self._batcher = Batcher(model, self._thread, **model.batching, count=self.metrics.count_batch)
        self._model_routes = {
            (method, route.path.format(name=model.name)): (route.endpoint, route.name, {"name": model.name})
            for route in self.routes
            if set(route.param_convertors) <= {"name"}
            for method in route.methods or ()
        }

    def start(self) -> None:
        """Starts the watchdog; called from the event loop that will answer requests."""
        self._watchdog.start()

    def close(self) -> None:
        """Writes buffered usage, records, samples and traces, and ends the model."""
        if self._model is not None:
            self._model.close()
        self.metering.close()
        if self._trace is not None:
            self._trace.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN_PATHS:
            await self._open_response(scope["path"])(scope, receive, send)
            return
        request = TrackedRequest(scope, receive)
        request.request_id = request_id_of(request)
        CURRENT_REQUEST.set(request)
        self._in_flight += 1
        status = 499  # the client disconnected
        try:
            response = await self._respond(request)
            if response.status_code >= 400 and request.spent:
                await self.metering.return_quota(request)
            if request.reserved and isinstance(response, BytesResponse):  # a stream uses them until its end
                await self.metering.return_tokens(request)
            response.raw_headers.append((b"x-request-id", request.request_id.encode()))
            status = response.status_code
            if status not in (401, 403):  # these reveal nothing about the server
                response.raw_headers += self._version_header
            await response(scope, receive, send)
        except ClientDisconnect:
            if request.spent and not request.is_counted and not request.is_worked_on:
                await self.metering.return_quota(request)
        finally:
            if request.reserved:
                await self.metering.return_tokens(request)
            self._in_flight -= 1
            self._release_tenant(request.tenant)
            self._finish(request, status)

    def model_for(self, request: TrackedRequest, name: str) -> ServedModel:
        model, caller = self.model, request.caller
        if name == model.name and caller.may_call(name):
            return model
        if caller.has_all_models:
            near = difflib.get_close_matches(name, [model.name], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; this server has {model.name!r}"
            raise Refused(404, "unknown_model", f"unknown model {name[:100]!r}{hint}")
        raise Refused(403, "forbidden", "this token does not allow this")

    async def take_quota(self, request: TrackedRequest, rows: int) -> None:
        if request.caller.rows_per_day is not None:
            await self.metering.take_quota(request, rows)

    async def reserve_tokens(self, request: TrackedRequest, prompt: int, wanted: Sequence[int]) -> Grant | None:
        return await self.metering.reserve_tokens(request, prompt, wanted) if request.caller.limits_tokens else None

    def record_usage(
        self, request: TrackedRequest, *, rows: int = 0, tokens: int = 0, prompt_tokens: int = 0, answers: Sequence[Any] = ()
    ) -> None:
        self.metering.record(request, rows, tokens, answers, prompt_tokens)

    def observe_text(self, first_seconds: float, further_seconds: float, tokens: int) -> None:
        self.metrics.observe_text(first_seconds, further_seconds, tokens)

    def count_unseen(self, counts: Mapping[tuple[str, str], int]) -> None:
        self.metrics.count_unseen(counts)

    async def run(self, size: int, work: Callable[[], Result]) -> Result:
        if self.runs_inline(size):
            return work()
        return await self._worker.run(size, work)

    async def convert(self, size: int, convert: Callable[[], Result]) -> Result:
        if size <= INLINE_BYTES:
            return convert()
        return await self._worker.run(size, convert)

    def runs_inline(self, size: int) -> bool:
        return size <= self._inline_bytes

    @property
    def is_batching(self) -> bool:
        return self._batcher is not None

    async def run_batched(self, feeds: Feeds, rows: int) -> NDArray[Any]:
        assert self._batcher is not None
        CURRENT_REQUEST.get().is_worked_on = True
        with self._worker.slot(self._batcher.seconds_per_row * rows):
            return await wait_for(asyncio.ensure_future(self._batcher.run(feeds, rows)))

    def body_memory(self) -> BodyMemory:
        return BodyMemory(self)

    def _open_response(self, path: str) -> Response:
        if path == "/metrics":
            return self.metrics.render()
        if path == "/readyz" and not self.ready:
            return BytesResponse(b"not ready\n", 503, media_type="text/plain")
        return BytesResponse(b"\n", media_type="text/plain")

    async def _respond(self, request: TrackedRequest) -> Response:
        """Returns the response of a route, of a refusal, or a 500 that shows the client only the request id."""
        try:
            request.caller = self.token_verifier.verify(bearer(request.header_bytes.get(b"authorization", b"")))
            request.tenant = request.caller.tenant
            self._tenant_in_flight[request.tenant] += 1
            if self._in_flight > MAX_IN_FLIGHT or self._tenant_in_flight[request.tenant] > MAX_TENANT_SHARE * MAX_IN_FLIGHT:
                raise overloaded()
            scope = request.scope
            known = self._model_routes.get((scope["method"], scope["path"]))
            if known is None:
                return await self._match_route(request)(request)
            endpoint, request.route, scope["path_params"] = known
            return await endpoint(request)
        except Refused as refused:
            request.code = refused.code
            return refused.to_response(request.request_id)
        except InvalidToken:
            request.code = "unauthorized"
            return UNAUTHORIZED.to_response(request.request_id)
        except ClientDisconnect:
            raise
        except Exception as error:
            if isinstance(error, InvalidOutput) and self._can_predict_sample():
                request.code = NO_FINITE_OUTPUT.code
                self.metrics.count_no_answer()
                return NO_FINITE_OUTPUT.to_response(request.request_id)
            logger.exception("request %s failed", request.request_id)
            request.code = "internal"
            hidden = Refused(500, "internal", "the server failed; see its log for this request id")
            return hidden.to_response(request.request_id)

    def _can_predict_sample(self) -> bool:
        """Whether the model still predicts its sample: then extreme values of the client are to blame, and not the server."""
        try:
            return bool(self.model.predict([self.model.contract.sample]))
        except InvalidOutput:
            return False

    def _match_route(self, request: TrackedRequest) -> Endpoint:
        """Returns the endpoint itself, without the wrapper that Starlette's router would put around it."""
        allowed: list[str] = []
        for route in self.routes:
            match, found = route.matches(request.scope)
            if match is Match.FULL:
                request.scope.update(found)
                request.route = route.name
                endpoint: Endpoint = route.endpoint
                return endpoint
            if match is Match.PARTIAL:
                allowed += sorted(route.methods or ())
        path = request.scope["path"]
        if allowed:
            raise Refused(
                405, "method_not_allowed", f"{request.method} is not allowed at {path[:200]}", {"allow": ", ".join(allowed)}
            )
        raise Refused(404, "not_found", f"nothing at {path[:200]}")

    def _release_tenant(self, tenant: str) -> None:
        left = self._tenant_in_flight.get(tenant, 0) - 1
        if left > 0:
            self._tenant_in_flight[tenant] = left
        else:
            self._tenant_in_flight.pop(tenant, None)

    def _finish(self, request: TrackedRequest, status: int) -> None:
        """Counts, logs and traces an answered request."""
        seconds = time.perf_counter() - request.started
        self.metrics.count(request.tenant, request.route, status, seconds)
        if self.log.is_logged(status, seconds):
            self.log.write(request, *self.metering.model, status, seconds)
        if self._trace is not None:
            model, version = self.metering.model
            attributes = {
                "headrace.model": model,
                "headrace.version": version,
                "headrace.tenant": request.tenant,
                "headrace.request_id": request.request_id,
            }
            self._trace.span(request.header_bytes, seconds, request.route, status, attributes)

    def _failure(self) -> str:
        return "" if self._model is None else self._model.failure

    def _queue_length(self) -> int:
        return self._batcher.queued_rows if self._batcher is not None else self._worker.jobs

"""The ASGI app that answers predictions: rooms of routes around one model, and one place that turns errors into answers."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from bentos.models.served_model import BrokenAnswer, ServedModel
from bentos.protocols.explain import Explain
from bentos.protocols.openai import OpenAI
from bentos.protocols.v1 import V1
from bentos.protocols.v2 import V2
from bentos.scheduling.batching import Batcher
from bentos.scheduling.streams import Streaming, Streams
from bentos.scheduling.watchdog import Watchdog
from bentos.scheduling.worker_thread import Workroom, wait_for
from bentos.telemetry.accounts import Accounts
from bentos.telemetry.metrics import Metrics
from bentos.telemetry.request_log import RequestLog
from bentos.telemetry.tracing import open_trace
from headrace.runtime.contract import Feeds
from headrace.runtime.http import BODY_LIMIT_BYTES, HELD_A_BYTE, Refused, overloaded, request_id_of
from headrace.runtime.http_call import CURRENT, Answer, Call
from headrace.runtime.token_verifier import InvalidToken, TokenVerifier, bearer

logger = logging.getLogger("headrace.serve")
Result = TypeVar("Result")
Endpoint = Callable[[Request], Awaitable[Response]]

INLINE_BYTES = 16 * 1024
"""A body no larger is read on the event loop: a thread would cost more than it frees."""
INLINE_SECONDS = 0.002
"""And answered there by a model no slower."""
MAX_IN_FLIGHT = 512
SHARE_OF_ONE = 0.75
"""Of those places, that one tenant may take: some are always left for others."""
MAX_HELD_BYTES = max(256 * 1024 * 1024, HELD_A_BYTE * BODY_LIMIT_BYTES)
"""Bodies and their values, held at once. A request beyond either gets 503, and the balancer sends it to another replica."""
OPEN_PATHS = frozenset({"/metrics", "/readyz", "/livez", "/healthz"})
"""Asked for by the balancer and by Prometheus, on this machine alone, without a token."""
NO_ANSWER = Refused(422, "no_answer", "the model has no finite answer to these values; are they far from any it has seen?")
UNAUTHORIZED = Refused(
    401, "unauthorized", "a valid token is needed: authorization: Bearer ...", {"www-authenticate": "Bearer"}
)


class HeldBody:
    """Memory that a request's body takes, and what is read from it, until the block ends."""

    __slots__ = ("_app", "_held")

    def __init__(self, app: PredictionApp) -> None:
        self._app = app
        self._held = 0

    def __enter__(self) -> Callable[[int], None]:
        return self._hold

    def __exit__(self, *_: object) -> None:
        self._app.held_bytes -= self._held

    def _hold(self, size: int) -> None:
        if self._app.held_bytes + size > MAX_HELD_BYTES:
            raise overloaded()
        self._app.held_bytes += size
        self._held += size


class PredictionApp:
    """An ASGI app; `model` is given at start-up, before the first request."""

    def __init__(self) -> None:
        guard = os.environ.get("HEADRACE_GUARD")
        self.guard = TokenVerifier(Path(guard) if guard else None)
        self.metrics = Metrics()
        self.accounts = Accounts(self.metrics)
        self.log = RequestLog()
        self._trace = open_trace()
        self._workroom = Workroom()
        self._thread = self._workroom.thread
        self._watchdog = Watchdog(lambda: self._thread.silent_seconds)
        self.streams = Streams(self._thread, self.account)
        self._batcher: Batcher | None = None
        self._model: ServedModel | None = None
        self._inline_bytes = -1
        self.is_streaming = False
        """Whether the model can answer piece by piece; kept, since a look at a protocol costs as much as a small prediction."""
        self.loaded_at = 0
        """Seconds since 1970."""
        self._version_header: list[tuple[bytes, bytes]] = []
        self._in_flight = 0
        self._of_tenant: defaultdict[str, int] = defaultdict(int)
        self.held_bytes = 0
        self.metrics.in_flight = lambda: self._in_flight
        self.metrics.queue_rows = self._queued
        # A further protocol is one file beside v1.py and one entry here.
        self.routes: list[Route] = [*V1(self).routes, *V2(self).routes, *OpenAI(self).routes, *Explain(self).routes]
        self._known: dict[tuple[str, str], tuple[Endpoint, str, dict[str, str]]] = {}

    @property
    def ready(self) -> bool:
        """Whether requests are answered: a model is loaded and nothing hangs."""
        return self._model is not None and not self._watchdog.is_stuck

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
        self.accounts.name_model(model)
        self._batcher = None
        if model.batching is not None:
            self._batcher = Batcher(model, self._thread, **model.batching, count=self.metrics.count_batch)
        self._known = {
            (method, route.path.format(name=model.name)): (route.endpoint, route.name, {"name": model.name})
            for route in self.routes
            if set(route.param_convertors) <= {"name"}
            for method in route.methods or ()
        }

    def start(self) -> None:
        """Called from the event loop that will answer."""
        self._watchdog.start()

    def close(self) -> None:
        """Writes what waits to be written."""
        self.accounts.close()
        if self._trace is not None:
            self._trace.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] in OPEN_PATHS:
            await self._show(scope["path"])(scope, receive, send)
            return
        call = Call(scope, receive)
        call.request_id = request_id_of(call)
        CURRENT.set(call)
        self._in_flight += 1
        status = 499  # the client has gone
        try:
            response = await self._answer(call)
            if response.status_code >= 400 and call.spent:
                await self.accounts.give_back(call)
            response.raw_headers.append((b"x-request-id", call.request_id.encode()))
            status = response.status_code
            if status not in (401, 403):  # which say nothing of what is here
                response.raw_headers += self._version_header
            await response(scope, receive, send)
        except ClientDisconnect:
            if call.spent and not call.is_counted:
                await self.accounts.give_back(call)
        finally:
            self._in_flight -= 1
            self._leave(call.tenant)
            self._end(call, status)

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
            near = difflib.get_close_matches(name, [model.name], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; this server has {model.name!r}"
            raise Refused(404, "unknown_model", f"no model {name[:100]!r} here{hint}")
        raise Refused(403, "forbidden", "this token does not open this")

    async def spend(self, request: Request, rows: int) -> None:
        """Takes `rows` from the caller's daily quota, before the work.

        Raises:
            Refused: 429, the quota does not hold so many; 503, nobody can say whether it does.
        """
        if request.state.caller.rows_per_day is not None:
            call: Any = request.state
            await self.accounts.spend(call, rows)

    def account(self, request: Request, *, rows: int = 0, tokens: int = 0, answers: Sequence[Any] = ()) -> None:
        """Counts what a request was given, before its answer leaves.

        Args:
            rows: of the whole answer; for a stream, with its start, and 0 afterwards.
            tokens: written, for text; for a stream, as they are written.
            answers: each a label, a value, or an answer as the model gives it.
        """
        call: Any = request.state
        self.accounts.add(call, rows, tokens, answers)

    async def work(self, size: int, predict: Callable[[], Result]) -> Result:
        """Runs `predict` here when it is small (`size` bytes of body), else in the one thread for large work.

        Raises:
            Refused: 503, too much waits already; 504, it takes too long.
            ClientDisconnect: the client is gone, and the work is left.
        """
        if self.runs_here(size):
            return predict()
        return await self._workroom.run(size, predict)

    async def convert(self, size: int, convert: Callable[[], Result]) -> Result:
        """Runs `convert`, which turns a body of `size` bytes into values, or a model's output into answers to one: here when
        that is small, however slow the model. In the thread it would wait for other requests' answers, and its own rows would
        miss the batch that forms meanwhile.

        Raises:
            Refused, ClientDisconnect: as `work`.
        """
        if size <= INLINE_BYTES:
            return convert()
        return await self._workroom.run(size, convert)

    def runs_here(self, size: int) -> bool:
        """Whether `work` of this size is done at once, on the event loop."""
        return size <= self._inline_bytes

    @property
    def runs_together(self) -> bool:
        """Whether requests to this model run together, by `run_together`."""
        return self._batcher is not None

    async def run_together(self, feeds: Feeds, rows: int) -> NDArray[Any]:
        """The model's output for `feeds`, run together with those of other requests that wait.

        Raises:
            Refused: 503, too much waits already; 504, it takes too long.
        """
        assert self._batcher is not None
        with self._workroom.room(self._batcher.seconds_a_row * rows):
            return await wait_for(asyncio.ensure_future(self._batcher.run(feeds, rows)))

    def held_body(self) -> HeldBody:
        """Gives what `read_body` tells of each piece; the memory counts as held until the block ends."""
        return HeldBody(self)

    def _show(self, path: str) -> Response:
        if path == "/metrics":
            return self.metrics.render()
        if path == "/readyz" and not self.ready:
            return Answer(b"not ready\n", 503, media_type="text/plain")
        return Answer(b"\n", media_type="text/plain")

    async def _answer(self, call: Call) -> Response:
        """The response to any request: a route's, a refusal's, or a 500 that tells the client no more than its id."""
        try:
            call.caller = self.guard.check(bearer(call.given.get(b"authorization", b"")))
            call.tenant = call.caller.tenant
            self._of_tenant[call.tenant] += 1
            if self._in_flight > MAX_IN_FLIGHT or self._of_tenant[call.tenant] > SHARE_OF_ONE * MAX_IN_FLIGHT:
                raise overloaded()
            scope = call.scope
            known = self._known.get((scope["method"], scope["path"]))
            if known is None:
                return await self._find(call)(call)
            endpoint, call.route, scope["path_params"] = known
            return await endpoint(call)
        except Refused as refused:
            call.code = refused.code
            return refused.to_response(call.request_id)
        except InvalidToken:
            call.code = "unauthorized"
            return UNAUTHORIZED.to_response(call.request_id)
        except ClientDisconnect:
            raise
        except Exception as error:
            if isinstance(error, BrokenAnswer) and self._answers_its_sample():
                call.code = NO_ANSWER.code
                return NO_ANSWER.to_response(call.request_id)
            logger.exception("request %s failed", call.request_id)
            call.code = "internal"
            hidden = Refused(500, "internal", "the server failed; its log names the request id")
            return hidden.to_response(call.request_id)

    def _answers_its_sample(self) -> bool:
        """Whether the model itself is sound: values far from any that it has seen are their client's, not a failure of ours."""
        try:
            return bool(self.model.predict([self.model.contract.sample]))
        except BrokenAnswer:
            return False

    def _find(self, call: Call) -> Endpoint:
        """The endpoint itself, without the wrapper that Starlette's router would put around it."""
        allowed: list[str] = []
        for route in self.routes:
            match, found = route.matches(call.scope)
            if match is Match.FULL:
                call.scope.update(found)
                call.route = route.name
                endpoint: Endpoint = route.endpoint
                return endpoint
            if match is Match.PARTIAL:
                allowed += sorted(route.methods or ())
        path = call.scope["path"]
        if allowed:
            raise Refused(
                405, "method_not_allowed", f"{call.method} is not allowed at {path[:200]}", {"allow": ", ".join(allowed)}
            )
        raise Refused(404, "not_found", f"nothing at {path[:200]}")

    def _leave(self, tenant: str) -> None:
        left = self._of_tenant.get(tenant, 0) - 1
        if left > 0:
            self._of_tenant[tenant] = left
        else:
            self._of_tenant.pop(tenant, None)

    def _end(self, call: Call, status: int) -> None:
        """Counts, logs and traces a request that is answered."""
        seconds = time.perf_counter() - call.started
        self.metrics.count(call.tenant, call.route, status, seconds)
        if self.log.wants(status, seconds):
            self.log.write(call, *self.accounts.model, status, seconds)
        if self._trace is not None:
            model, version = self.accounts.model
            facts = {"headrace.model": model, "headrace.version": version, "headrace.tenant": call.tenant}
            self._trace.span(call.given, seconds, call.route, status, {**facts, "headrace.request_id": call.request_id})

    def _queued(self) -> int:
        return self._batcher.queued_rows if self._batcher is not None else self._workroom.jobs

"""The API server's ASGI app: its routes, the check of the token, and one place that turns errors into responses."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from headrace.project import Project
from headrace.runtime.http import Refused, request_id_of
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import TokenVerifier
from headrace.services.api.batches import BatchRoutes
from headrace.services.api.callers import caller_of
from headrace.services.api.catalogue import Catalogue, CatalogueRoutes
from headrace.services.api.feedback import FeedbackRoutes
from headrace.services.api.health import HealthRoutes
from headrace.services.api.monitoring_metrics import MonitoringMetricsRoutes
from headrace.services.api.openapi_routes import OpenApiRoutes
from headrace.services.api.replica_metrics import ReplicaMetricsRoutes
from headrace.services.api.reviews import ReviewRoutes

logger = logging.getLogger("headrace.services.api")
OPEN_PATHS = frozenset({"/readyz", "/livez", "/v2", "/v2/health/live", "/v2/health/ready", "/docs"})
"""They reveal no model, so they need no token."""


class ApiServer:
    """Serves what belongs to no single replica. An asynchronous context manager: batches are processed while it is open."""

    def __init__(self, project: Project) -> None:
        self._verifier = TokenVerifier(project.token_keys if project.settings.access == "tokens" else None)
        self._open = AsyncExitStack()
        catalogue = Catalogue(project)
        self._batches = BatchRoutes(project, catalogue)
        self._feedback = FeedbackRoutes(project, catalogue)
        self.routes: list[Route] = [
            *CatalogueRoutes(catalogue).routes,
            *self._feedback.routes,
            *self._batches.routes,
            *ReviewRoutes(project).routes,
            *OpenApiRoutes(catalogue, project.settings).routes,
            *HealthRoutes(catalogue).routes,
            *ReplicaMetricsRoutes(project).routes,
            *MonitoringMetricsRoutes(project).routes,
        ]

    async def __aenter__(self) -> ApiServer:
        for part in (self._feedback, self._batches):
            await self._open.enter_async_context(part)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = TrackedRequest(scope, receive)
        request.request_id = request_id_of(request)
        try:
            response = await self._answer(request)
            response.headers["x-request-id"] = request.request_id
            await response(scope, receive, send)
        except ClientDisconnect:
            logger.info("request %s: the client has disconnected", request.request_id)

    async def _answer(self, request: TrackedRequest) -> Response:
        """Returns the response of a route, an error, or a 500 that gives the client nothing but the request id."""
        try:
            if request.scope["path"] not in OPEN_PATHS:
                request.caller = caller_of(request, self._verifier)
            response: Response = await self._find(request)(request)
            return response
        except Refused as refused:
            return refused.to_response(request.request_id)
        except ClientDisconnect:
            raise
        except Exception:
            logger.exception("request %s failed", request.request_id)
            generic = Refused(500, "internal", "the server failed; see its log for this request id")
            return generic.to_response(request.request_id)

    def _find(self, request: TrackedRequest) -> Any:
        """Returns the endpoint for the path and the method."""
        allowed: list[str] = []
        for route in self.routes:
            match, found = route.matches(request.scope)
            if match is Match.FULL:
                request.scope.update(found)
                return route.endpoint
            if match is Match.PARTIAL:
                allowed += sorted(route.methods or ())
        path = request.scope["path"][:200]
        if allowed:
            headers = {"allow": ", ".join(allowed)}
            raise Refused(405, "method_not_allowed", f"{request.method} is not allowed at {path}", headers)
        raise Refused(404, "not_found", f"no such path: {path}")

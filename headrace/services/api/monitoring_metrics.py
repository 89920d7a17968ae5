"""`GET /monitoring/metrics`: the last look at each model, for Prometheus."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.routing import Route

from headrace.project import Project
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import BytesResponse, TrackedRequest
from headrace.services.monitoring.metrics import render
from headrace.serving.gateway.metrics_listener import MONITORING


class MonitoringMetricsRoutes:
    """What the monitoring found. Envoy routes here from `gateway_admin_port` alone."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self.routes = [Route(MONITORING, self.metrics, methods=["GET"])]

    async def metrics(self, request: TrackedRequest) -> Response:
        """
        Raises:
            Refused: 403, the token does not allow all models.
        """
        if not request.caller.has_all_models:
            raise Refused(403, "forbidden", "this token does not allow this")
        return BytesResponse(await asyncio.to_thread(render, self._project), media_type=CONTENT_TYPE_LATEST)

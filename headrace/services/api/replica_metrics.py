"""`GET /replicas/<id>/metrics`: Prometheus reads the metrics of replicas here, since it cannot open their Unix sockets."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.routing import Route

from headrace.project import Project
from headrace.runtime.http import Refused
from headrace.runtime.http_messages import BytesResponse, TrackedRequest
from headrace.serving.gateway import gateway
from headrace.serving.local_http import request as send

ANSWER_SECONDS = 5.0


class ReplicaMetricsRoutes:
    """The metrics of each replica behind the gateway. Envoy routes here from `gateway_admin_port` alone."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self.routes = [Route("/replicas/{id}/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, request: TrackedRequest) -> Response:
        """
        Raises:
            Refused: 403, the token does not allow all models; 404, no replica has this id; 502, it does not answer.
        """
        if not request.caller.has_all_models:
            raise Refused(403, "forbidden", "this token does not allow this")
        return BytesResponse(await asyncio.to_thread(self._read, request.path_params["id"]), media_type=CONTENT_TYPE_LATEST)

    def _read(self, replica_id: str) -> bytes:
        endpoints = [endpoint for found in gateway.endpoints_by_model(self._project).values() for endpoint in found]
        replica = next((endpoint for endpoint in endpoints if endpoint.id == replica_id), None)
        if replica is None:
            raise Refused(404, "not_found", f"no replica {replica_id[:100]!r} is behind the gateway")
        try:
            answer = send(replica.address_in(self._project), "/metrics", timeout_seconds=ANSWER_SECONDS)
        except OSError as error:
            raise Refused(502, "bad_gateway", f"the replica does not answer: {error or type(error).__name__}") from None
        if answer.status != 200:
            raise Refused(502, "bad_gateway", f"the replica's /metrics answers {answer.status}")
        return answer.content

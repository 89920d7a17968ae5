"""Routes for the health of the service and the description of the server, as in the Open Inference Protocol."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from headrace import __version__
from headrace.runtime.http import to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.services.api.catalogue import Catalogue


class HealthRoutes:
    """`/v2` and `/v2/health/...`; `/readyz` and `/livez` for the watchdog."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.routes = [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
            Route("/livez", self.live, methods=["GET"]),
            Route("/readyz", self.live, methods=["GET"]),
        ]

    async def server(self, request: TrackedRequest) -> Response:
        return to_json({"name": "headrace", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, request: TrackedRequest) -> Response:
        return to_json({"live": True})

    async def ready(self, request: TrackedRequest) -> Response:
        """Returns 503 while a model has no healthy replica."""
        is_ready = await self._catalogue.is_ready()
        return to_json({"ready": is_ready}, 200 if is_ready else 503)

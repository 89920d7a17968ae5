"""Whether the whole door is alive and ready, in the words of the Open Inference Protocol, and what the server is."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Route

from headrace import __version__
from headrace.runtime.http import to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.services.api.catalogue import Catalogue


class Health:
    """`/v2`, `/v2/health/...`; `/readyz` and `/livez` for whoever keeps the desk alive."""

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
        """503 while a model has no replica that answers."""
        is_ready = await self._catalogue.is_ready()
        return to_json({"ready": is_ready}, 200 if is_ready else 503)

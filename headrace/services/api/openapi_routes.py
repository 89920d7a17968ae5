"""Routes for `/openapi.json`, and for `/docs`, a page that shows it without loading anything from other servers."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from starlette.responses import Response
from starlette.routing import Route

from headrace.runtime.http import to_json
from headrace.runtime.http_messages import TrackedRequest
from headrace.runtime.token_verifier import SEE
from headrace.services.api.catalogue import Catalogue
from headrace.services.api.openapi import document
from headrace.serving.gateway import gateway
from headrace.settings import Settings

PAGE = Path(__file__).with_name("docs.html")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; connect-src 'self'; frame-ancestors 'none'"
"""The page runs its own script only, sends requests to this server only, and cannot be embedded in another page."""


class OpenApiRoutes:
    """`/openapi.json` and `/docs`."""

    def __init__(self, catalogue: Catalogue, settings: Settings) -> None:
        self._catalogue, self._settings = catalogue, settings
        self.routes = [
            Route("/openapi.json", self.openapi, methods=["GET"]),
            Route("/docs", self.page, methods=["GET"]),
        ]

    async def openapi(self, request: TrackedRequest) -> Response:
        """Describes the models that the caller may use, and no others; reviews for callers with a role."""
        models = await self._catalogue.list_for(request.caller)
        needs_token, sees_reviews = self._settings.access == "tokens", request.caller.role in SEE
        return to_json(document(models, gateway.address(self._settings), needs_token, sees_reviews))

    async def page(self, request: TrackedRequest) -> Response:
        content, policy = _page()
        return Response(content, headers={"content-security-policy": policy}, media_type="text/html")


@cache
def _page() -> tuple[bytes, str]:
    """Returns the page, and the policy that allows its script only."""
    content = PAGE.read_bytes()
    script = content.partition(b"<script>")[2].partition(b"</script>")[0]
    return content, POLICY.format(base64.b64encode(hashlib.sha256(script).digest()).decode())

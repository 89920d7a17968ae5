"""Which requests to MLflow only read: those that a reviewer or a viewer may send."""

from __future__ import annotations

import re

OBJECTS = "experiments|runs|metrics|artifacts|registered-models|model-versions|logged-models|datasets|traces"
API = r"/(ajax-)?api/[23]\.0/mlflow/"
GET = re.compile(
    rf"/|/(static-files|build)/.*|/(get-artifact|model-versions/get-artifact|graphql|health|version)"
    rf"|{API}({OBJECTS})(/.*)?|{API}(server-info|ui-telemetry|workspaces|get-trace-artifact)"
    r"|/(ajax-)?api/2\.0/mlflow-artifacts/artifacts(/.*)?"
)
"""MLflow's pages and the objects of its tracking and registry. Not its gateway, whose answers name secrets, nor webhooks."""
POST = re.compile(rf"/graphql|{API}({OBJECTS})/(search|search-datasets|get-latest-versions)")
"""Searches, which MLflow takes as POST. Its GraphQL has queries only."""


def is_read(method: str, path: str) -> bool:
    """Whether a request to MLflow changes nothing and shows no secret.

    Args:
        path: decoded, without the query.
    """
    if ".." in path or "//" in path:
        return False
    return bool(GET.fullmatch(path) if method in ("GET", "HEAD") else method == "POST" and POST.fullmatch(path))

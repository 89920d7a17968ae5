"""Whether Envoy sends requests as it is written down: it takes up a file some milliseconds after it was written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.gateway import clusters, gateway, routes
from headrace.serving.gateway.admin import ask
from headrace.settings import Settings

NOTICE_SECONDS = 20.0
PATH = "/config_dump?resource=dynamic_route_configs"


def wait_until_sent(project: Project, settings: Settings, model: str) -> None:
    """Returns when Envoy's routes give the canaries and shadows of `model` their shares.

    Raises:
        ServiceError: they do not within 20 s.
    """
    wanted = next(_shares(routes.shares(model, gateway.served(project)[model]), model))
    deadline = time.monotonic() + NOTICE_SECONDS
    while (found := set(_shares(_routes(settings), model))) != {wanted}:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Envoy does not send the requests of {model!r} as it should: {sorted(found)} instead of {wanted}",
                where=".headrace/logs/envoy.log",
                hint="headrace down, then headrace up",
            )
        time.sleep(0.02)


def _shares(value: Any, model: str) -> Iterator[tuple[int, int]]:
    """Parts of 10,000 that go to canaries and shadows, for each action below `value` that serves `model`."""
    if isinstance(value, list):
        for one in value:
            yield from _shares(one, model)
    elif isinstance(value, dict):
        weights = {c["name"]: int(c.get("weight", 0)) for c in value.get("weighted_clusters", {}).get("clusters", [])}
        if weights.pop(clusters.cluster_name(model, "main"), None) is not None:
            mirrored = [
                int(policy["runtime_fraction"]["default_value"].get("numerator", 0))
                for policy in value.get("request_mirror_policies", [])
            ]
            yield sum(weights.values()), sum(mirrored)
        for one in value.values():
            yield from _shares(one, model)


def _routes(settings: Settings) -> Any:
    answer = ask(settings, PATH)
    return answer.json_or_text() if answer else None

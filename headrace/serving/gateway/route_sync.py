"""Waits until Envoy has applied new traffic weights: it reads a file some milliseconds after it was written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.gateway import clusters, routes
from headrace.serving.gateway.admin import NOTICE_SECONDS, ask
from headrace.serving.gateway.model_route import ModelRoute

PATH = "/config_dump?resource=dynamic_route_configs"


def wait_until_routed(project: Project, model: str, route: ModelRoute) -> None:
    """Returns when Envoy splits the requests of `model` between main pool, canaries and shadows as `route` says.

    Raises:
        ServiceError: Envoy does not within 20 s.
    """
    wanted = next(_weights(routes.weights(model, route), model))
    deadline = time.monotonic() + NOTICE_SECONDS
    while (found := set(_weights(_active_routes(project), model))) != {wanted}:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Envoy has not applied the traffic weights of {model!r}: it has {sorted(found)} instead of {wanted}",
                where=".headrace/logs/envoy.log",
                hint="headrace down, then headrace up",
            )
        time.sleep(0.02)


def _weights(value: Any, model: str) -> Iterator[tuple[int, int]]:
    """Yields the weights of canaries and shadows, in parts of 10,000, for each action in `value` that serves `model`."""
    if isinstance(value, list):
        for item in value:
            yield from _weights(item, model)
    elif isinstance(value, dict):
        weights = {c["name"]: int(c.get("weight", 0)) for c in value.get("weighted_clusters", {}).get("clusters", [])}
        if weights.pop(clusters.cluster_name(model, "main"), None) is not None:
            mirrored = [
                int(policy["runtime_fraction"]["default_value"].get("numerator", 0))
                for policy in value.get("request_mirror_policies", [])
            ]
            yield sum(weights.values()), sum(mirrored)
        for item in value.values():
            yield from _weights(item, model)


def _active_routes(project: Project) -> Any:
    answer = ask(project, PATH)
    return answer.json_or_text() if answer else None

"""Reads Envoy's admin interface: which replicas are healthy, and its counters."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import quote

from headrace.errors import ServiceError
from headrace.serving.gateway import clusters, envoy_stats
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.local_http import Response, try_request
from headrace.serving.replicas.replica import Pool
from headrace.settings import Settings

Address = tuple[str, int]
"""Host and port of a replica."""

NOTICE_SECONDS = 20.0
"""Time limit for Envoy to apply a file: it needs milliseconds, on an overloaded machine longer."""


def healthy_endpoints(settings: Settings, model: str, pool: Pool | None = None) -> set[Address]:
    """Returns host and port of the replicas that Envoy sends requests to; empty when Envoy does not answer."""
    return {address for address, healthy in known_endpoints(settings, model, pool).items() if healthy}


def known_endpoints(settings: Settings, model: str, pool: Pool | None = None) -> dict[Address, bool]:
    """Returns every replica of `model` (of one pool) that Envoy knows, and whether it is healthy."""
    answer = ask(settings, "/clusters?format=json")
    if answer is None or answer.status != 200:
        return {}
    names = {clusters.cluster_name(model, each) for each in ([pool] if pool else clusters.POOLS)}
    found: dict[Address, bool] = {}
    for cluster in answer.json().get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []) if cluster["name"] in names else []:
            where = host["address"]["socket_address"]
            failing = {name for name, value in host["health_status"].items() if value and name != "eds_health_status"}
            address = (str(where["address"]), int(where["port_value"]))
            found[address] = not failing and found.get(address, True)
    return found


def wait_until_healthy(
    settings: Settings,
    model: str,
    addresses: set[Address],
    seconds: float = NOTICE_SECONDS,
    pool: Pool | None = None,
) -> None:
    """Returns when Envoy sends requests to each of `addresses` (as members of `pool`).

    Raises:
        ServiceError: Envoy does not within `seconds`.
    """
    if not until(lambda: addresses <= healthy_endpoints(settings, model, pool), seconds):
        missing = sorted(addresses - healthy_endpoints(settings, model, pool))
        raise ServiceError(
            f"these replicas of {model!r} did not become healthy in Envoy: "
            + ", ".join(f"{host}:{port}" for host, port in missing),
            where=".headrace/logs/envoy.log",
            hint="headrace down, then headrace up",
        )


def wait_until_removed(
    settings: Settings,
    model: str,
    addresses: set[Address],
    seconds: float = NOTICE_SECONDS,
    pool: Pool | None = None,
) -> None:
    """Returns when Envoy has removed each of `addresses` (as members of `pool`).

    Raises:
        ServiceError: Envoy has not within `seconds`.
    """
    if not until(lambda: not addresses & known_endpoints(settings, model, pool).keys(), seconds):
        raise ServiceError(
            f"Envoy still sends requests to removed replicas of {model!r}",
            where=".headrace/logs/envoy.log",
            hint="headrace down, then headrace up",
        )


def pool_stats(settings: Settings, model: str) -> dict[Pool, PoolStats]:
    """Returns Envoy's counters for each pool of `model` since Envoy started; empty when it does not answer."""
    names = {pool: (clusters.cluster_name(model, pool), clusters.counting_name(model, pool)) for pool in clusters.POOLS}
    pattern = quote(rf"^cluster\.{re.escape(model)}(~canary|~shadow|~trial)?\.(retry\.)?upstream_rq_(total|5xx|rx_reset|time)$")
    answer = ask(settings, f"/stats?format=json&histogram_buckets=cumulative&filter={pattern}")
    if answer is None or answer.status != 200:
        return {}
    return envoy_stats.read(answer.json()["stats"], names)


def active_requests(settings: Settings) -> int:
    """Returns the number of requests that are not answered yet."""
    answer = ask(settings, "/stats?filter=http.gateway.downstream_rq_active&format=json")
    stats = answer.json()["stats"] if answer else []
    return sum(int(stat.get("value", 0)) for stat in stats)


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Waits for `condition`; returns whether it became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ask(settings: Settings, path: str, method: str = "GET") -> Response | None:
    """Sends one request to Envoy's admin interface; None when it does not answer."""
    return try_request(("127.0.0.1", settings.gateway_admin_port), path, method=method)

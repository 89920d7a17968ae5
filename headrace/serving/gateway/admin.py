"""Reads Envoy's admin interface: which replicas are healthy, and its counters."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from headrace.errors import ServiceError
from headrace.project import Project
from headrace.serving.gateway import clusters, envoy_stats
from headrace.serving.gateway.envoy_stats import PoolStats
from headrace.serving.local_http import Address, Response, address_text, try_request
from headrace.serving.replicas.replica import Pool

NOTICE_SECONDS = 20.0
"""Time limit for Envoy to apply a file: it needs milliseconds, on an overloaded machine longer."""


def healthy_endpoints(project: Project, model: str, pool: Pool | None = None) -> set[Address]:
    """Returns the addresses of the replicas that Envoy sends requests to; empty when Envoy does not answer."""
    return {address for address, healthy in known_endpoints(project, model, pool).items() if healthy}


def known_endpoints(project: Project, model: str, pool: Pool | None = None) -> dict[Address, bool]:
    """Returns every replica of `model` (of one pool) that Envoy knows, and whether it is healthy."""
    answer = ask(project, "/clusters?format=json")
    if answer is None or answer.status != 200:
        return {}
    names = {clusters.cluster_name(model, each) for each in ([pool] if pool else clusters.POOLS)}
    found: dict[Address, bool] = {}
    for cluster in answer.json().get("cluster_statuses", []):
        for host in cluster.get("host_statuses", []) if cluster["name"] in names else []:
            address = host_address(host)
            found[address] = is_healthy(host) and found.get(address, True)
    return found


def host_address(host: Mapping[str, Any]) -> Address:
    """Returns the address of a host in Envoy's answer, equal to `Replica.address`."""
    where = host["address"]
    if "pipe" in where:
        return Path(where["pipe"]["path"])
    return str(where["socket_address"]["address"]), int(where["socket_address"]["port_value"])


def is_healthy(host: Mapping[str, Any]) -> bool:
    """Whether Envoy sends requests to a host in its answer."""
    return not any(value for name, value in host["health_status"].items() if name != "eds_health_status")


def wait_until_healthy(
    project: Project,
    model: str,
    addresses: set[Address],
    seconds: float = NOTICE_SECONDS,
    pool: Pool | None = None,
) -> None:
    """Returns when Envoy sends requests to each of `addresses` (as members of `pool`).

    Raises:
        ServiceError: Envoy does not within `seconds`.
    """
    if not until(lambda: addresses <= healthy_endpoints(project, model, pool), seconds):
        missing = sorted(address_text(address) for address in addresses - healthy_endpoints(project, model, pool))
        raise ServiceError(
            f"these replicas of {model!r} did not become healthy in Envoy: " + ", ".join(missing),
            where=".headrace/logs/envoy.log",
            hint="headrace down, then headrace up",
        )


def wait_until_removed(
    project: Project,
    model: str,
    addresses: set[Address],
    seconds: float = NOTICE_SECONDS,
    pool: Pool | None = None,
) -> None:
    """Returns when Envoy has removed each of `addresses` (as members of `pool`).

    Raises:
        ServiceError: Envoy has not within `seconds`.
    """
    if not until(lambda: not addresses & known_endpoints(project, model, pool).keys(), seconds):
        raise ServiceError(
            f"Envoy still sends requests to removed replicas of {model!r}",
            where=".headrace/logs/envoy.log",
            hint="headrace down, then headrace up",
        )


def pool_stats(project: Project, model: str) -> dict[Pool, PoolStats]:
    """Returns Envoy's counters for each pool of `model` since Envoy started; empty when it does not answer."""
    names = {pool: (clusters.cluster_name(model, pool), clusters.counting_name(model, pool)) for pool in clusters.POOLS}
    pattern = quote(
        rf"^cluster\.{re.escape(model)}(~canary|~shadow|~trial)?\.(retry\.)?upstream_rq_(total|4xx|5xx|rx_reset|time)$"
    )
    answer = ask(project, f"/stats?format=json&histogram_buckets=cumulative&filter={pattern}")
    if answer is None or answer.status != 200:
        return {}
    return envoy_stats.read(answer.json()["stats"], names)


def active_requests(project: Project) -> int:
    """Returns the number of requests that are not answered yet."""
    answer = ask(project, "/stats?filter=http.gateway.downstream_rq_active&format=json")
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


def ask(project: Project, path: str, method: str = "GET") -> Response | None:
    """Sends one request to Envoy's admin interface; None when it does not answer."""
    return try_request(project.gateway_admin, path, method=method)

"""What the door serves, and how Envoy finds it: a cluster for each pool of a model's replicas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.serving.gateway.protobuf import TYPES, Json, socket_address, typed, watched
from headrace.serving.replicas.replica import Pool, Replica
from headrace.settings import Settings

DESK = "~desk"
"""A tilde, so that it is no model's name."""
CIRCUIT_BREAKERS = {
    "thresholds": [{"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 2048, "max_retries": 1024}]
}
"""Retries have room for every request of a killed replica: the default of 3 would fail the rest."""
HEALTH_INTERVAL = "0.5s"
POOLS: tuple[Pool, ...] = ("main", "canary", "shadow")


def versions(endpoints: Iterable[Replica]) -> str:
    """Of all of them, as one says it: `1, 2`."""
    return ", ".join(sorted({endpoint.version for endpoint in endpoints}))


@dataclass(frozen=True)
class Traffic:
    """Which requests of a model go elsewhere than to its main pool."""

    canary: float = 0.0
    """Percent that the canary pool answers."""
    shadow: float = 0.0
    """Percent that also go to the shadow pool, whose answers nobody gets."""


@dataclass(frozen=True)
class Served:
    """One model behind the door."""

    endpoints: list[Replica]
    traffic: Traffic = Traffic()
    predecessors: tuple[Replica, ...] = ()
    """Replicas of what served before, while the version that serves now is not released: a kill is undone by them."""

    def pool(self, name: Pool) -> list[Replica]:
        return [endpoint for endpoint in self.endpoints if endpoint.pool == name]


Routes = Mapping[str, Served]
"""Model to what serves it."""


def cluster_name(model: str, pool: Pool) -> str:
    """How Envoy names a pool: no model's name holds a tilde."""
    return model if pool == "main" else f"{model}~{pool}"


def trial_name(model: str) -> str:
    return f"{model}~trial"


def judged_name(model: str, pool: Pool) -> str:
    """The cluster under which Envoy counts the answers of a pool: the one that its routes name."""
    return trial_name(model) if pool == "canary" else cluster_name(model, pool)


def clusters(model: str, folder: Path) -> list[Json]:
    """One for each pool, also for those that are empty: a pool that comes or goes is then a matter of endpoints alone."""
    return [*(cluster(cluster_name(model, pool), folder) for pool in POOLS), trial_cluster(model)]


def trial_cluster(model: str) -> Json:
    """The canary pool, and the main pool in its place where no canary can answer: a trial costs nobody an answer."""
    pools = [cluster_name(model, "canary"), cluster_name(model, "main")]
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": trial_name(model),
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": typed("envoy.clusters.aggregate", "extensions.clusters.aggregate.v3.ClusterConfig", clusters=pools),
        "circuit_breakers": CIRCUIT_BREAKERS,
    }


def cluster(name: str, folder: Path) -> Json:
    """How the replicas of one pool are found, watched and chosen."""
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": name, "eds_config": watched(folder / "eds" / f"{name}.json")},
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [health_check()],
        # A replica that is taken out goes at once, healthy or not; one that comes in waits for its first check.
        "ignore_health_on_host_removal": True,
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "ignore_new_hosts_until_first_hc": True,
            # That a new host is healthy would reach the workers a second after the administration says so.
            "update_merge_window": "0s",
        },
        "outlier_detection": outlier_detection(),
        "circuit_breakers": CIRCUIT_BREAKERS,
    }


def api_cluster(settings: Settings) -> Json:
    endpoint = {"endpoint": {"address": socket_address("127.0.0.1", settings.api_port)}}
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": DESK,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": DESK, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def health_check() -> Json:
    return {
        "timeout": "2s",
        "interval": HEALTH_INTERVAL,
        "no_traffic_interval": HEALTH_INTERVAL,
        "no_traffic_healthy_interval": HEALTH_INTERVAL,
        "unhealthy_edge_interval": HEALTH_INTERVAL,
        "initial_jitter": "0.01s",
        "healthy_threshold": 1,
        "unhealthy_threshold": 3,
        "http_health_check": {"path": "/readyz"},
    }


def outlier_detection() -> Json:
    """A replica that drops connections rests for 5 s. Its own 500s do not count: they may be the request's fault."""
    return {
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "5s",
        "max_ejection_time": "30s",
        "max_ejection_percent": 50,
    }


def assignment(name: str, endpoints: list[Replica]) -> Json:
    return {
        "@type": TYPES + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(e.host, e.port)}} for e in endpoints]}],
    }


def resources(found: list[Json]) -> Json:
    """A file of one kind of resources, as Envoy reads it."""
    return {"resources": found}

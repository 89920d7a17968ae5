"""Envoy's clusters: one for each pool of a model's replicas, and one for the API server."""

from __future__ import annotations

from pathlib import Path

from headrace.project import Project
from headrace.serving.gateway.protobuf import TYPES, Json, pipe, socket_address, typed, watched
from headrace.serving.replicas.replica import Pool, Replica

API_SERVER, ADMIN = "~api", "~admin"
"""Contain a tilde, which no model's name does."""
CIRCUIT_BREAKERS = {
    "thresholds": [{"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 2048, "max_retries": 1024}]
}
"""Retries are allowed for every request of a killed replica: with the default of 3 the others would fail."""
HEALTH_INTERVAL = "0.5s"
POOLS: tuple[Pool, ...] = ("main", "canary", "shadow")


def cluster_name(model: str, pool: Pool) -> str:
    """Returns Envoy's name of a pool. No model's name contains a tilde."""
    return model if pool == "main" else f"{model}~{pool}"


def trial_name(model: str) -> str:
    return f"{model}~trial"


def counting_name(model: str, pool: Pool) -> str:
    """Returns the cluster under which Envoy counts the answers of a pool: the one that the routes name."""
    return trial_name(model) if pool == "canary" else cluster_name(model, pool)


def clusters(model: str, folder: Path) -> list[Json]:
    """Returns a cluster for each pool, empty or not: adding or removing a pool then changes endpoints alone."""
    return [*(cluster(cluster_name(model, pool), folder) for pool in POOLS), trial_cluster(model)]


def trial_cluster(model: str) -> Json:
    """Returns the canary pool, with the main pool as fallback when no canary can answer: a trial fails no request."""
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
    """Returns how Envoy discovers, checks and balances the replicas of one pool."""
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": name, "eds_config": watched(folder / "eds" / f"{name}.json")},
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [health_check()],
        # A removed replica gets no more requests, healthy or not; a new one waits for its first check.
        "ignore_health_on_host_removal": True,
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0},
            "ignore_new_hosts_until_first_hc": True,
            # Otherwise the workers would learn that a new host is healthy a second after the admin interface reports it.
            "update_merge_window": "0s",
        },
        "outlier_detection": outlier_detection(),
        "circuit_breakers": CIRCUIT_BREAKERS,
    }


def server_clusters(project: Project) -> list[Json]:
    """Returns the API server, and Envoy's own admin interface for the listener of its metrics."""
    sockets = {API_SERVER: project.api_socket, ADMIN: project.gateway_admin}
    return [_server_cluster(name, path.relative_to(project.root)) for name, path in sockets.items()]


def _server_cluster(name: str, socket: Path) -> Json:
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": pipe(socket)}}]}],
        },
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
    """A replica that drops connections is ejected for 5 s. Its 500s do not count: the request may cause them."""
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
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(replica)}} for replica in endpoints]}],
    }


def _address(replica: Replica) -> Json:
    return pipe(replica.address) if isinstance(replica.address, Path) else socket_address(*replica.address)


def resources(found: list[Json]) -> Json:
    """Wraps resources of one type as Envoy reads them from a file."""
    return {"resources": found}

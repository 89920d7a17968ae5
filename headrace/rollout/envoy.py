"""Envoy's configuration as plain JSON values: pure functions from endpoints and settings, one for each part.

Names and defaults follow Envoy 1.40's v3 API. Durations are text with an `s`, as JSON's protobuf mapping asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.rollout.replicas import Pool
from headrace.settings import Settings

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy."
MAX_CONNECTIONS = 4096
"""Open connections of clients; each takes a file descriptor and a buffer."""
HEALTH_INTERVAL = "0.5s"
LATENCY_BUCKETS = [float(f"{step * 10**power:g}") for power in range(5) for step in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8)]
"""Milliseconds, each a quarter above the one before: Envoy's own are too far apart to compare two versions by."""


@dataclass(frozen=True)
class Endpoint:
    """One replica behind the door."""

    host: str
    port: int
    replica: str
    """The replica's id."""
    version: str
    bento_tag: str
    runner: str = "processes"
    image: str | None = None
    threads: int = 1
    pool: Pool = "main"

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def to_dict(self) -> Json:
        return asdict(self)


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

    endpoints: list[Endpoint]
    traffic: Traffic = Traffic()

    def pool(self, name: Pool) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints if endpoint.pool == name]


Routes = Mapping[str, Served]
"""Model to what serves it."""
POOLS: tuple[Pool, ...] = ("main", "canary", "shadow")


def cluster_name(model: str, pool: Pool) -> str:
    """How Envoy names a pool: no model's name holds a tilde."""
    return model if pool == "main" else f"{model}~{pool}"


def bootstrap(settings: Settings, folder: Path) -> Json:
    """What Envoy reads once, at its start; everything else it watches in `folder`."""
    return {
        "admin": {"address": _address("127.0.0.1", settings.door_admin_port)},
        "node": {"id": "headrace", "cluster": "headrace"},
        "dynamic_resources": {"lds_config": _watched(folder / "lds.json"), "cds_config": _watched(folder / "cds.json")},
        "overload_manager": {
            "resource_monitors": [
                _typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MAX_CONNECTIONS,
                )
            ],
        },
        "stats_flush_interval": "1s",
        "stats_config": {"histogram_bucket_settings": [{"match": {"suffix": "upstream_rq_time"}, "buckets": LATENCY_BUCKETS}]},
    }


def listener(settings: Settings, folder: Path) -> Json:
    """Where clients connect."""
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        **_connection_manager(settings, folder),
    )
    return {
        "@type": TYPES + "config.listener.v3.Listener",
        "name": "door",
        "address": _address(settings.host, settings.door_port),
        # Without this a second Envoy could share the port unnoticed and answer half of the requests.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [{"filters": [manager]}],
    }


def _connection_manager(settings: Settings, folder: Path) -> Json:
    return {
        "stat_prefix": "door",
        "rds": {"route_config_name": "models", "config_source": _watched(folder / "rds.json")},
        "server_name": "headrace",
        "server_header_transformation": "OVERWRITE",
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "merge_slashes": True,
        "max_request_headers_kb": 32,
        "request_headers_timeout": "10s",
        "request_timeout": "60s",
        "stream_idle_timeout": "120s",
        "common_http_protocol_options": {"idle_timeout": "300s", "max_headers_count": 100},
        "local_reply_config": {"mappers": local_replies()},
        "http_filters": http_filters(settings),
    }


def http_filters(settings: Settings) -> list[Json]:
    """In the order that a request passes them; tokens and limits come before the buffer, the router is last."""
    return [
        # Holds a request until it is whole: a slow client keeps no replica busy, and any request can be sent again.
        _typed(
            "envoy.filters.http.buffer",
            "extensions.filters.http.buffer.v3.Buffer",
            max_request_bytes=settings.max_request_bytes,
        ),
        _typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]


def local_replies() -> list[Json]:
    """Envoy's own refusals, in the JSON shape of the replicas' refusals."""
    told = {
        408: ("request_timeout", "the request did not arrive in time"),
        413: ("too_large", "the request's body is too large"),
        429: ("too_many_requests", "too many requests; try again"),
        431: ("headers_too_large", "the request's headers are too large"),
        502: ("bad_gateway", "the model's server gave no valid answer"),
        503: ("unavailable", "no replica can answer at the moment; try again"),
        504: ("timeout", "the model did not answer in time"),
    }
    return [
        {
            "filter": {
                "status_code_filter": {
                    "comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": f"door.reply_{status}"}}
                }
            },
            "body_format_override": {"json_format": _error(code, message)},
        }
        for status, (code, message) in told.items()
    ]


def route_configuration(routes: Routes, settings: Settings) -> Json:
    """Paths to models, a list of the models, and a 404 that names those there are."""
    return {
        "@type": TYPES + "config.route.v3.RouteConfiguration",
        "name": "models",
        "virtual_hosts": [
            {
                "name": "models",
                "domains": ["*"],
                "routes": [
                    *(route for model in sorted(routes) for route in model_routes(model, routes[model], settings)),
                    {"match": {"path": "/v1/models"}, "direct_response": _answer(200, _served(routes))},
                    {"match": {"path": "/readyz"}, "direct_response": _answer(200, {"ready": True})},
                    {"match": {"prefix": "/"}, "direct_response": _answer(404, _unknown(routes))},
                ],
            }
        ],
    }


def shares(model: str, served: Served) -> Json:
    """Where a request goes, and where its copy. Percent become whole parts of 10,000, as Envoy counts them."""
    canary = round(served.traffic.canary * 100) if served.pool("canary") else 0
    shadow = round(served.traffic.shadow * 100) if served.pool("shadow") else 0
    weights = [(cluster_name(model, "main"), 10_000 - canary), (cluster_name(model, "canary"), canary)]
    mirror = {
        "cluster": cluster_name(model, "shadow"),
        "runtime_fraction": {"default_value": {"numerator": shadow, "denominator": "TEN_THOUSAND"}},
        "disable_shadow_host_suffix_append": True,
    }
    return {
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in weights]},
        **({"request_mirror_policies": [mirror]} if shadow else {}),
    }


def model_routes(model: str, served: Served, settings: Settings) -> list[Json]:
    """`/v1/models/<model>` and all below it, but not `/v1/models/<model>-2`."""
    action = {
        **shares(model, served),
        # A limit on silence, not on the whole: a text that is written piece by piece may take as long as it lives.
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": retry_policy(),
    }
    return [
        {"match": {"path": f"/v1/models/{model}"}, "route": action},
        {"match": {"prefix": f"/v1/models/{model}/"}, "route": action},
    ]


def retry_policy() -> Json:
    """A prediction changes nothing, so it may be repeated, on another replica."""
    return {
        "retry_on": "connect-failure,refused-stream,reset,unavailable,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.2s"},
        "retry_host_predicate": [
            _typed(
                "envoy.retry_host_predicates.previous_hosts", "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            )
        ],
        "host_selection_retry_max_attempts": 5,
    }


def clusters(model: str, folder: Path) -> list[Json]:
    """One for each pool, also for those that are empty: a pool that comes or goes is then a matter of endpoints alone."""
    return [cluster(cluster_name(model, pool), folder) for pool in POOLS]


def cluster(name: str, folder: Path) -> Json:
    """How the replicas of one pool are found, watched and chosen."""
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"service_name": name, "eds_config": _watched(folder / "eds" / f"{name}.json")},
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [health_check()],
        # A replica that is taken out goes at once, healthy or not; one that comes in waits for its first check.
        "ignore_health_on_host_removal": True,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "ignore_new_hosts_until_first_hc": True},
        "outlier_detection": outlier_detection(),
        # Retries have room for every request of a killed replica: the default of 3 would fail the rest.
        "circuit_breakers": {
            "thresholds": [{"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 2048, "max_retries": 1024}]
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


def assignment(name: str, endpoints: list[Endpoint]) -> Json:
    return {
        "@type": TYPES + "config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": name,
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(e.host, e.port)}} for e in endpoints]}],
    }


def resources(found: list[Json]) -> Json:
    """A file of one kind of resources, as Envoy reads it."""
    return {"resources": found}


def _unknown(routes: Routes) -> Json:
    served = ", ".join(sorted(routes)) or "none"
    return _error("not_found", f"nothing is served at %REQ(:path)%; models served: {served}")


def _served(routes: Routes) -> Json:
    return {
        "models": [
            {"model": model, "versions": sorted({e.version for e in served.endpoints}), "path": f"/v1/models/{model}"}
            for model, served in sorted(routes.items())
        ]
    }


def _error(code: str, message: str) -> Json:
    return {"error": {"code": code, "message": message}, "request_id": "%REQ(x-request-id)%"}


def _answer(status: int, body: Json) -> Json:
    return {"status": status, "body_format": {"json_format": body}}


def _watched(path: Path) -> Json:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _typed(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": TYPES + kind, **fields}}

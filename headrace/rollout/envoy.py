"""Envoy's configuration as plain JSON values: pure functions from endpoints and settings, one for each part.

Names and defaults follow Envoy 1.40's v3 API. Durations are text with an `s`, as JSON's protobuf mapping asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.rollout.access import (
    COMPLETIONS,
    OPEN_PATHS,
    TYPES,
    Access,
    everywhere,
    filters,
    names_model,
    opens,
    opens_to_all,
    reads_body,
    typed,
)
from headrace.rollout.replicas import Pool
from headrace.settings import Settings
from headrace.tls import CIPHERS, Certificate

Json = dict[str, Any]
MAX_CONNECTIONS = 4096
"""Open connections of clients; each takes a file descriptor and a buffer."""
BUFFER = "envoy.filters.http.buffer"
DESK = "~desk"
"""A tilde, so that it is no model's name."""
DESK_PATHS = (*OPEN_PATHS, "/v1/models", "/v1/feedback", "/openapi.json")
FORBIDDEN = ("forbidden", "this token does not open this")
CIRCUIT_BREAKERS = {
    "thresholds": [{"max_connections": 1024, "max_pending_requests": 1024, "max_requests": 2048, "max_retries": 1024}]
}
"""Retries have room for every request of a killed replica: the default of 3 would fail the rest."""
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
                typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MAX_CONNECTIONS,
                )
            ],
        },
        "stats_flush_interval": "1s",
        "stats_config": {"histogram_bucket_settings": [{"match": {"suffix": "upstream_rq_time"}, "buckets": LATENCY_BUCKETS}]},
    }


def listener(settings: Settings, folder: Path, access: Access | None) -> Json:
    """Where clients connect."""
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        **_connection_manager(settings, folder, access),
    )
    return {
        "@type": TYPES + "config.listener.v3.Listener",
        "name": "door",
        "address": _address(settings.host, settings.door_port),
        # Without this a second Envoy could share the port unnoticed and answer half of the requests.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [{"filters": [manager], **({} if settings.tls == "off" else {"transport_socket": _tls(folder)})}],
    }


def _tls(folder: Path) -> Json:
    """TLS 1.2 and up. The certificate is watched: a new one is in force at once, and no connection drops."""
    secret = {"name": "door", "sds_config": _watched(folder / "sds.json")}
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
            "cipher_suites": CIPHERS,
        },
        "tls_certificate_sds_secret_configs": [secret],
    }
    kind = "extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return typed("envoy.transport_sockets.tls", kind, common_tls_context=common)


def secret(certificate: Certificate) -> Json:
    """The door's certificate, as Envoy watches it."""
    return {
        "@type": TYPES + "extensions.transport_sockets.tls.v3.Secret",
        "name": "door",
        "tls_certificate": {
            "certificate_chain": {"filename": str(certificate.chain)},
            "private_key": {"filename": str(certificate.key)},
        },
    }


def _connection_manager(settings: Settings, folder: Path, access: Access | None) -> Json:
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
        "path_with_escaped_slashes_action": "REJECT_REQUEST",  # a replica would read another path than is checked here
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 16,
            "initial_connection_window_size": 1 << 20,
        },
        "max_request_headers_kb": 32,
        "request_headers_timeout": "10s",
        "request_timeout": "60s",
        "stream_idle_timeout": "120s",
        "common_http_protocol_options": {"idle_timeout": "300s", "max_headers_count": 100},
        "local_reply_config": {"mappers": local_replies()},
        "http_filters": http_filters(settings, access),
    }


def http_filters(settings: Settings, access: Access | None) -> list[Json]:
    """In the order that a request passes them; tokens and limits come before the buffer, the router is last."""
    return [
        *filters(access, settings.max_request_bytes),
        # Holds a request until it is whole: a slow client keeps no replica busy, and any request can be sent again.
        typed(
            BUFFER,
            "extensions.filters.http.buffer.v3.Buffer",
            max_request_bytes=settings.max_request_bytes,
        ),
        typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]


def local_replies() -> list[Json]:
    """Envoy's own refusals, in the JSON shape of the replicas' refusals."""
    told = {
        400: ("bad_request", "the request is malformed"),
        403: FORBIDDEN,
        408: ("request_timeout", "the request did not arrive in time"),
        413: ("too_large", "the request's body is too large"),
        431: ("headers_too_large", "the request's headers are too large"),
        502: ("bad_gateway", "the model's server gave no valid answer"),
        503: ("unavailable", "no replica can answer at the moment; try again"),
        504: ("timeout", "the model did not answer in time"),
    }
    unauthorized = {
        "status_code": 401,
        "headers_to_add": [_set_header("www-authenticate", "Bearer")],
        **_said("unauthorized", "a valid token is needed: authorization: Bearer ..."),
    }
    return [
        # To the role-based filter a revoked token is forbidden; to the client it is as good as none.
        {"filter": _by_policy("revoked"), **unauthorized},
        {"filter": _by_status(401), **unauthorized},
        {
            "filter": _by_status(429),
            "headers_to_add": [_set_header("retry-after", "1")],
            **_said("too_many_requests", "too many requests; try again"),
        },
        *({"filter": _by_status(status), **_said(*said)} for status, said in told.items()),
    ]


def _by_status(status: int) -> Json:
    value = {"default_value": status, "runtime_key": f"door.reply_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _by_policy(name: str) -> Json:
    """Refused by the role-based filter's policy of this name."""
    kind = "extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    expression = f"response.code_details.startsWith('rbac_access_denied_matched_policy[{name}]')"
    return {"extension_filter": typed("envoy.access_loggers.extension_filters.cel", kind, expression=expression)}


def _said(code: str, message: str) -> Json:
    return {"body_format_override": {"json_format": _error(code, message)}}


def _set_header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def route_configuration(routes: Routes, settings: Settings, access: Access | None) -> Json:
    """Paths to models and to the desk, and for the rest a 404 that names what is served, to those who may know."""
    unknown = {"direct_response": _answer(404, _unknown(routes))}
    models = sorted(routes)
    return {
        "@type": TYPES + "config.route.v3.RouteConfiguration",
        "name": "models",
        "typed_per_filter_config": everywhere(access),
        "virtual_hosts": [
            {
                "name": "models",
                "domains": ["*"],
                "routes": [
                    _route({"path": "/readyz"}, opens_to_all(access), direct_response=_answer(200, {"ready": True})),
                    *(route for model in models for route in model_routes(model, routes[model], settings, access)),
                    *(route for model in models for route in completion_routes(model, routes[model], settings, access)),
                    *(_route({"path": path}, opens(access, None) | reads_body(), **unknown) for path in COMPLETIONS),
                    *(_route({"path": path}, opens_to_all(access), route=desk_action(settings)) for path in DESK_PATHS),
                    _route({"prefix": "/"}, opens(access, None), **unknown),
                ],
            }
        ],
    }


def shares(model: str, served: Served) -> Json:
    """Where a request goes, and where its copy. Percent become whole parts of 10,000, as Envoy counts them."""
    canary = round(served.traffic.canary * 100) if served.pool("canary") else 0
    shadow = round(served.traffic.shadow * 100) if served.pool("shadow") else 0
    weights = [(cluster_name(model, "main"), 10_000 - canary), (trial_name(model), canary)]
    mirror = {
        "cluster": cluster_name(model, "shadow"),
        "runtime_fraction": {"default_value": {"numerator": shadow, "denominator": "TEN_THOUSAND"}},
        "disable_shadow_host_suffix_append": True,
    }
    return {
        "weighted_clusters": {"clusters": [{"name": name, "weight": weight} for name, weight in weights]},
        **({"request_mirror_policies": [mirror]} if shadow else {}),
    }


def model_routes(model: str, served: Served, settings: Settings, access: Access | None) -> list[Json]:
    """`/v1/models/<model>` and all below it, but not `/v1/models/<model>-2`; the same for version 2; batches to the desk."""
    action, right = model_action(model, served, settings), opens(access, model)
    unbuffered = {BUFFER: {"@type": TYPES + "extensions.filters.http.buffer.v3.BufferPerRoute", "disabled": True}}
    batches = [{"path": f"/v1/models/{model}/batches"}, {"prefix": f"/v1/models/{model}/batches/"}]
    mine = [match for v in ("v1", "v2") for match in ({"path": f"/{v}/models/{model}"}, {"prefix": f"/{v}/models/{model}/"})]
    return [
        *(_route(match, right | unbuffered, route=desk_action(settings)) for match in batches),
        *(_route(match, right, route=action) for match in mine),
    ]


def completion_routes(model: str, served: Served, settings: Settings, access: Access | None) -> list[Json]:
    """OpenAI's paths, for bodies that name `model`."""
    action, right = model_action(model, served, settings), opens(access, model)
    return [_route({"path": path, **names_model(model)}, right | reads_body(), route=action) for path in COMPLETIONS]


def desk_action(settings: Settings) -> Json:
    """To the desk, which may change something: sent once more only where it was not reached at all."""
    return {
        "cluster": DESK,
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 3},
    }


def desk_cluster(settings: Settings) -> Json:
    endpoint = {"endpoint": {"address": _address("127.0.0.1", settings.desk_port)}}
    return {
        "@type": TYPES + "config.cluster.v3.Cluster",
        "name": DESK,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": DESK, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def model_action(model: str, served: Served, settings: Settings) -> Json:
    """To the model's pools. What replicas answer changes nothing, so it may be asked again on another one."""
    return {
        **shares(model, served),
        # A limit on silence, not on the whole: a text that is written piece by piece may take as long as it lives.
        "timeout": "0s",
        "idle_timeout": f"{settings.request_seconds:g}s",
        "retry_policy": retry_policy(),
    }


def retry_policy() -> Json:
    """A prediction changes nothing, so it may be repeated, on another replica."""
    return {
        "retry_on": "connect-failure,refused-stream,reset,unavailable,retriable-status-codes",
        "retriable_status_codes": [503],
        "num_retries": 3,
        "retry_back_off": {"base_interval": "0.01s", "max_interval": "0.2s"},
        "retry_host_predicate": [
            typed(
                "envoy.retry_host_predicates.previous_hosts", "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
            )
        ],
        "host_selection_retry_max_attempts": 5,
        # A request that a canary failed is tried again on the main pool.
        "retry_priority": typed(
            "envoy.retry_priorities.previous_priorities",
            "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            update_frequency=1,
        ),
    }


def clusters(model: str, folder: Path) -> list[Json]:
    """One for each pool, also for those that are empty: a pool that comes or goes is then a matter of endpoints alone."""
    return [*(cluster(cluster_name(model, pool), folder) for pool in POOLS), trial_cluster(model)]


def judged_name(model: str, pool: Pool) -> str:
    """The cluster under which Envoy counts the answers of a pool: the one that its routes name."""
    return trial_name(model) if pool == "canary" else cluster_name(model, pool)


def trial_name(model: str) -> str:
    return f"{model}~trial"


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
        "eds_cluster_config": {"service_name": name, "eds_config": _watched(folder / "eds" / f"{name}.json")},
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


def _route(match: Json, per_filter: Json, **action: Json) -> Json:
    return {"match": match, "typed_per_filter_config": per_filter, **action}


def _error(code: str, message: str) -> Json:
    return {"error": {"code": code, "message": message}, "request_id": "%REQ(x-request-id)%"}


def _answer(status: int, body: Json) -> Json:
    return {"status": status, "body_format": {"json_format": body}}


def _watched(path: Path) -> Json:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}

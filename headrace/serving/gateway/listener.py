"""Envoy's bootstrap and its listener for clients: TLS, limits, and the bodies of its own error responses."""

from __future__ import annotations

from pathlib import Path

from headrace.project import Project
from headrace.serving.access.tls import CIPHERS, Certificate
from headrace.serving.gateway.access_filters import Access, filters
from headrace.serving.gateway.connection_limits import filter_chains
from headrace.serving.gateway.protobuf import TYPES, Json, error, pipe, socket_address, typed, watched
from headrace.settings import Settings

BUFFER, COMPLETE = "envoy.filters.http.buffer", "headrace.complete"
IDLE_SECONDS = 300.0
"""A connection on which nothing happens for so long is closed."""
FIRST_BYTES_SECONDS = 10.0
"""A new connection that sends nothing is closed after so long instead."""
ARRIVAL_SECONDS = 60.0
"""Requests whose body takes longer to arrive are refused, except uploads of batches while they make progress."""
FORBIDDEN = ("forbidden", "this token does not allow this")
LATENCY_BUCKETS = [float(f"{step * 10**power:g}") for power in range(5) for step in (1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.4, 8)]
"""Milliseconds, each a quarter above the previous one: Envoy's default buckets are too wide to compare two versions."""


def admin_socket(project: Project) -> Path:
    """The socket of Envoy's admin interface as Envoy, which runs in the project's folder, finds it.

    The address of a Unix socket has at most 107 bytes, and the path of the folder may be longer.
    """
    return project.gateway_admin.relative_to(project.root)


def bootstrap(settings: Settings, folder: Path, admin: Path) -> Json:
    """Returns what Envoy reads once, when it starts; it watches everything else in `folder`.

    Its admin interface has no authentication, so it is a Unix socket that this user only can open.
    """
    return {
        "admin": {"address": pipe(admin, mode=0o600)},
        "node": {"id": "headrace", "cluster": "headrace"},
        "dynamic_resources": {"lds_config": watched(folder / "lds.json"), "cds_config": watched(folder / "cds.json")},
        "overload_manager": {
            "resource_monitors": [
                typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=settings.max_connections,
                )
            ],
        },
        "stats_flush_interval": "1s",
        "stats_config": {"histogram_bucket_settings": [{"match": {"suffix": "upstream_rq_time"}, "buckets": LATENCY_BUCKETS}]},
    }


def listener(settings: Settings, folder: Path, access: Access) -> Json:
    """Returns the listener that clients connect to."""
    manager, silent = (
        typed(
            "envoy.filters.network.http_connection_manager",
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            **_connection_manager(settings, folder, access, idle_seconds),
        )
        for idle_seconds in (IDLE_SECONDS, FIRST_BYTES_SECONDS)
    )
    chain = {
        "transport_socket_connect_timeout": f"{FIRST_BYTES_SECONDS:g}s",
        **({} if settings.tls == "off" else {"transport_socket": _tls(folder)}),
    }
    return {
        "@type": TYPES + "config.listener.v3.Listener",
        "name": "gateway",
        "address": socket_address(settings.host, settings.gateway_port),
        # Without this a second Envoy could share the port unnoticed and answer half of the requests.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": 1 << 20,
        **filter_chains(settings, {"filters": [manager], **chain}, {"filters": [silent], **chain}),
    }


def _tls(folder: Path) -> Json:
    """Returns TLS 1.2 and above. The certificate is watched: Envoy uses a new one at once and drops no connection."""
    secret = {"name": "gateway", "sds_config": watched(folder / "sds.json")}
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
    """Returns the gateway's certificate as a resource that Envoy watches."""
    return {
        "@type": TYPES + "extensions.transport_sockets.tls.v3.Secret",
        "name": "gateway",
        "tls_certificate": {
            "certificate_chain": {"filename": str(certificate.chain)},
            "private_key": {"filename": str(certificate.key)},
        },
    }


def _connection_manager(settings: Settings, folder: Path, access: Access, idle_seconds: float) -> Json:
    return {
        "stat_prefix": "gateway",
        "rds": {"route_config_name": "models", "config_source": watched(folder / "rds.json")},
        "server_name": "headrace",
        "server_header_transformation": "OVERWRITE",
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",  # a replica would see another path than the one checked here
        # HTTP/1.0, which proxies such as nginx use by default; the same checks apply.
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "headrace"},
        "http2_protocol_options": {
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 1 << 16,
            "initial_connection_window_size": 1 << 20,
        },
        "max_request_headers_kb": 32,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "120s",
        "common_http_protocol_options": {
            "idle_timeout": f"{idle_seconds:g}s",
            "max_headers_count": 100,
            # Instead of `request_timeout`, which no route can override: routes extend it for the answer.
            "max_stream_duration": f"{ARRIVAL_SECONDS:g}s",
        },
        "local_reply_config": {"mappers": local_replies(settings.max_request_bytes)},
        "http_filters": http_filters(settings, access),
    }


def http_filters(settings: Settings, access: Access) -> list[Json]:
    """Returns the filters in the order that a request passes them: tokens and limits, the buffer, the router."""
    return [
        *filters(access, settings.max_request_bytes),
        # Holds a request until it is complete: a slow client blocks no replica, and any request can be retried.
        typed(
            BUFFER,
            "extensions.filters.http.buffer.v3.Buffer",
            max_request_bytes=settings.max_request_bytes,
        ),
        mark_complete(),
        typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]


def mark_complete() -> Json:
    """Marks a request as complete and selects its route again: that route has another time limit."""
    state = {
        "object_key": COMPLETE,
        "factory_key": "envoy.string",
        "format_string": {"text_format_source": {"inline_string": "yes"}},
    }
    kind = "extensions.filters.http.set_filter_state.v3.Config"
    return typed(COMPLETE, kind, on_request_headers=[state], clear_route_cache=True)


def local_replies(max_request_bytes: int) -> list[Json]:
    """Returns Envoy's own error responses, in the JSON format of the replicas."""
    messages = {
        400: ("bad_request", "the request is malformed"),
        403: FORBIDDEN,
        408: ("request_timeout", "the request did not arrive in time"),
        413: ("too_large", f"the request's body is larger than {max_request_bytes:,} bytes"),
        431: ("headers_too_large", "the request's headers are too large"),
        502: ("bad_gateway", "the model's server gave no valid answer"),
        503: ("unavailable", "no replica can answer at the moment; try again"),
        504: ("timeout", "the model did not answer in time"),
    }
    unauthorized = {
        "status_code": 401,
        "headers_to_add": [_set_header("www-authenticate", "Bearer")],
        **_body("unauthorized", "a valid token is needed: authorization: Bearer ..."),
    }
    return [
        # The role-based filter answers 403 to a revoked token; the client gets the answer for a missing one.
        {"filter": _by_policy("revoked"), **unauthorized},
        {"filter": _by_status(401), **unauthorized},
        {
            "filter": _by_status(429),
            **_body("too_many_requests", "too many requests; try again"),
        },
        *({"filter": _by_status(status), **_body(*parts)} for status, parts in messages.items()),
    ]


def _by_status(status: int) -> Json:
    value = {"default_value": status, "runtime_key": f"gateway.reply_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _by_policy(name: str) -> Json:
    """Matches what the role-based filter's policy of this name refused."""
    kind = "extensions.access_loggers.filters.cel.v3.ExpressionFilter"
    expression = f"response.code_details.startsWith('rbac_access_denied_matched_policy[{name}]')"
    return {"extension_filter": typed("envoy.access_loggers.extension_filters.cel", kind, expression=expression)}


def _body(code: str, message: str) -> Json:
    return {"body_format_override": {"json_format": error(code, message)}}


def _set_header(name: str, value: str) -> Json:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}

"""Metrics for Prometheus, on a port of their own: those of each replica, of the monitoring, and Envoy's.

Nothing else of Envoy's admin interface can be reached by HTTP.
"""

from __future__ import annotations

from headrace.serving.gateway.access_filters import Access, allow_model, filters, for_all_routes
from headrace.serving.gateway.clusters import ADMIN, API_SERVER
from headrace.serving.gateway.protobuf import TYPES, Json, socket_address, typed
from headrace.settings import LOOPBACK, Settings

PATH = "/stats/prometheus"
REPLICAS = "/replicas/"
"""Above the metrics of each replica, which the API server reads from its Unix socket."""
MONITORING = "/monitoring/metrics"
"""What the last look at each model found, from the API server."""


def listener(settings: Settings, access: Access) -> Json:
    """Returns the listener of `gateway_admin_port`, for tokens that allow all models."""
    get = {"name": ":method", "string_match": {"exact": "GET"}}
    routes = [
        {
            "match": {**match, "headers": [get]},
            "route": {"cluster": cluster},
            "typed_per_filter_config": allow_model(access, None),
        }
        for match, cluster in (
            ({"path": PATH}, ADMIN),
            ({"prefix": REPLICAS}, API_SERVER),
            ({"path": MONITORING}, API_SERVER),
        )
    ]
    host = {"name": "metrics", "domains": ["*"], "routes": routes, "typed_per_filter_config": for_all_routes(access)}
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="metrics",
        route_config={"name": "metrics", "virtual_hosts": [host], "validate_clusters": False},
        normalize_path=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        http_filters=[
            *filters(access, 1024),
            typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
        ],
    )
    return {
        "@type": TYPES + "config.listener.v3.Listener",
        "name": "metrics",
        "address": socket_address(LOOPBACK, settings.gateway_admin_port),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [manager]}],
    }

"""The replicas whose metrics Prometheus collects, as a file for its file-based service discovery.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

from __future__ import annotations

from headrace.serving.gateway.metrics_listener import REPLICAS
from headrace.serving.gateway.model_route import Routes
from headrace.serving.gateway.protobuf import Json
from headrace.settings import LOOPBACK, Settings

FILE = "targets.json"


def targets(routes: Routes, settings: Settings) -> list[Json]:
    """Returns one group for each replica. Its metrics name model and version; these labels serve when it is down."""
    address = f"{LOOPBACK}:{settings.gateway_admin_port}"
    return [
        {
            "targets": [address],
            "labels": {
                "__metrics_path__": f"{REPLICAS}{e.id}/metrics",
                "instance": e.id,
                "model": model,
                "version": e.version,
                "pool": e.pool,
            },
        }
        for model, route in sorted(routes.items())
        for e in route.endpoints
    ]

"""Which replicas Prometheus asks for their metrics, as its file-based discovery reads them.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

from __future__ import annotations

from headrace.serving.gateway.clusters import Routes
from headrace.serving.gateway.protobuf import Json

FILE = "targets.json"


def targets(routes: Routes) -> list[Json]:
    """One group a replica. A replica names its model and version itself; labels here are for one that does not answer."""
    return [
        {"targets": [f"{e.host}:{e.port}"], "labels": {"model": model, "version": e.version, "pool": e.pool}}
        for model, found in sorted(routes.items())
        for e in found.endpoints
    ]

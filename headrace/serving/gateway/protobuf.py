"""The few values that every part of Envoy's configuration is made of, as JSON.

Names and defaults follow Envoy 1.40's v3 API. Durations are text with an `s`, as JSON's protobuf mapping asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy."


def typed(name: str, kind: str, **fields: Any) -> Json:
    """A named extension of Envoy with its configuration."""
    return {"name": name, "typed_config": {"@type": TYPES + kind, **fields}}


def watched(path: Path) -> Json:
    """Where Envoy finds resources, and reads them again when another file takes the place of this one."""
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def error(code: str, message: str) -> Json:
    """A refusal's body, as replicas write it too."""
    return {"error": {"code": code, "message": message}, "request_id": "%REQ(x-request-id)%"}

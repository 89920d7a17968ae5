"""Building blocks of Envoy's configuration, as JSON.

Names and defaults follow the v3 API of Envoy 1.40. Durations are text with an `s`, as protobuf's JSON mapping requires.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

Json = dict[str, Any]
TYPES = "type.googleapis.com/envoy."


def typed(name: str, message_type: str, **fields: Any) -> Json:
    """Returns a named extension of Envoy with its configuration."""
    return {"name": name, "typed_config": {"@type": TYPES + message_type, **fields}}


def watched(path: Path) -> Json:
    """Returns a file that Envoy reads resources from, and reads again when the file is replaced."""
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def pipe(path: Path, **options: int) -> Json:
    """Returns the address of a Unix socket. Envoy runs in the project's folder: a relative path stays short."""
    return {"pipe": {"path": str(path), **options}}


def error(code: str, message: str) -> Json:
    """Returns the body of an error response, in the format that replicas use."""
    return {"error": {"code": code, "message": message}, "request_id": "%REQ(x-request-id)%"}

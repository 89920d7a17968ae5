"""Small HTTP requests to servers of this project: replicas, Envoy's administration, MLflow, Prefect, the API server.

`http.client` alone, so that the watchdog can use it: an HTTP library would cost it ten times the memory.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.runtime.unix_socket import short_path

Address = tuple[str, int] | Path
"""Host and port, or a Unix socket."""


def address_text(address: Address) -> str:
    """Returns an address for messages: `host:port`, or the path of a Unix socket."""
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            with short_path(self._path) as address:
                self.sock.connect(address)
        except FileNotFoundError as error:
            raise ConnectionRefusedError(f"nothing listens on {self._path}") from error


@dataclass(frozen=True)
class Response:
    """An answer, read to its end."""

    status: int
    content_type: str
    """Without parameters, for example `application/json`."""
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """
        Raises:
            ValueError: the body is not JSON.
        """
        return json.loads(self.content)

    def json_or_text(self) -> Any:
        """The parsed body, or the text of one that is not JSON."""
        try:
            return self.json()
        except ValueError:
            return self.text


def request(
    address: Address,
    path: str,
    *,
    method: str = "GET",
    body: Any = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = 5.0,
) -> Response:
    """Sends one request and returns its answer, whatever its status.

    Args:
        address: host and port, or the path of a Unix socket.
        body: sent as JSON; None for no body.
        token: sent as bearer token.
        headers: sent as well.
        timeout_seconds: the longest wait for the connection and for each piece of the answer.

    Raises:
        ConnectionError: nothing listens, or the connection was closed without an answer.
        OSError: any other failure, a timeout for example.
    """
    sent = {"content-type": "application/json", **(headers or {})}
    if token:
        sent["authorization"] = f"Bearer {token}"
    connection = (
        UnixConnection(address, timeout_seconds)
        if isinstance(address, Path)
        else http.client.HTTPConnection(*address, timeout=timeout_seconds)
    )
    try:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        response = connection.getresponse()
        return Response(response.status, response.headers.get_content_type(), response.read())
    except http.client.RemoteDisconnected:  # a ConnectionError as well
        raise
    except http.client.HTTPException as error:
        raise OSError(f"no valid HTTP answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def try_request(address: Address, path: str, **options: Any) -> Response | None:
    """As `request`, with None in place of an error."""
    try:
        return request(address, path, **options)
    except OSError:
        return None

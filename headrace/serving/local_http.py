"""Small HTTP requests to servers of this project: replicas, Envoy's administration, MLflow, Prefect, the API server.

`http.client` alone, so that the watchdog can use it: an HTTP library would cost it ten times the memory.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any


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
    address: tuple[str, int],
    path: str,
    *,
    method: str = "GET",
    body: Any = None,
    token: str | None = None,
    timeout_seconds: float = 5.0,
) -> Response:
    """Sends one request and returns its answer, whatever its status.

    Args:
        address: host and port.
        body: sent as JSON; None for no body.
        token: sent as bearer token.
        timeout_seconds: the longest wait for the connection and for each piece of the answer.

    Raises:
        ConnectionError: nothing listens, or the connection was closed without an answer.
        OSError: any other failure, a timeout for example.
    """
    headers = {"content-type": "application/json"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    connection = http.client.HTTPConnection(*address, timeout=timeout_seconds)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return Response(response.status, response.headers.get_content_type(), response.read())
    except http.client.RemoteDisconnected:  # a ConnectionError as well
        raise
    except http.client.HTTPException as error:
        raise OSError(f"no valid HTTP answer: {error or type(error).__name__}") from error
    finally:
        connection.close()


def try_request(address: tuple[str, int], path: str, **options: Any) -> Response | None:
    """As `request`, with None in place of an error."""
    try:
        return request(address, path, **options)
    except OSError:
        return None

"""Settings of the HTTP connection, and the translation of httpx errors, for both clients."""

from __future__ import annotations

import ipaddress
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from headrace.client.errors import CallFailed, TimedOut, Unavailable
from headrace.client.requests import ApiRequest

ADDRESS = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
UPLOAD_BYTES_PER_SECOND = 1 << 16
"""An upload gets one more second per 64 KiB, for slow connections."""
Verify = bool | str | Path | ssl.SSLContext
"""Whether to verify the gateway's certificate, or the PEM file of the authority (`.headrace/tls/authority.pem`)."""
Token = str | Callable[[], str]
"""A token, or a function that is called at each attempt, for a token that changes."""


def client_options(address: str | None, token: Token | None, verify: Verify) -> dict[str, Any]:
    """Returns the arguments of httpx' clients; defaults are `HEADRACE_ADDRESS` and `HEADRACE_TOKEN`.

    Calls to this machine do not go through a proxy, even if `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` is set.

    Raises:
        CallFailed: `verify` names a file that cannot be read or holds no certificate.
    """
    base = httpx.URL(address or os.environ.get("HEADRACE_ADDRESS") or ADDRESS)
    token = token or os.environ.get("HEADRACE_TOKEN")
    headers = {"accept-encoding": "identity", "user-agent": "headrace-client"}
    if isinstance(verify, str | Path):
        verify = _ssl_context(verify)
    return {
        "base_url": base,
        "headers": headers,
        "auth": _bearer(token) if token else None,
        "verify": verify,
        "limits": httpx.Limits(max_connections=64, max_keepalive_connections=64),
        "follow_redirects": False,  # a token is sent to the address that it is for only
        "mounts": {f"all://{_in_url(base.host)}": None} if _is_loopback(base.host) else {},  # None: no proxy
    }


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _ssl_context(authority: str | Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority))
    except OSError as error:  # ssl.SSLError is one too; neither names the file
        why = "not a PEM certificate" if isinstance(error, ssl.SSLError) else error.strerror
        hint = "use a copy of .headrace/tls/authority.pem of the gateway's project"
        raise CallFailed(f"{authority}: {why}", where="verify", hint=hint) from None


def _bearer(token: Token) -> Callable[[httpx.Request], httpx.Request]:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["authorization"] = f"Bearer {(token() if callable(token) else token).strip()}"
        return request

    return sign


def total_timeout(call: ApiRequest, timeout: float) -> float:
    """Returns the time limit of a call in seconds, longer for an upload."""
    size = call.file.stat().st_size if call.file is not None else len(call.body or b"")
    return timeout + size / UPLOAD_BYTES_PER_SECOND if "/batches" in call.path else timeout


def httpx_timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))


@contextmanager
def translated_errors(call: ApiRequest, address: str) -> Iterator[None]:
    """Raises errors of httpx as errors of this package, with the id of the request."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise Unavailable("the service cannot be reached", where=address, request_id=call.request_id) from None
    except httpx.TimeoutException:
        raise TimedOut("no answer in time", where=address, request_id=call.request_id) from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # a retry cannot succeed
            hint = "pass verify='authority.pem', a copy of .headrace/tls/authority.pem of the gateway's project"
            message = f"the certificate of the service is not trusted ({error})"
            raise CallFailed(message, where=address, hint=hint, request_id=call.request_id) from None
        raise Unavailable(f"the service does not respond ({error})", where=address, request_id=call.request_id) from None
    except CallFailed as error:
        error.where = error.where or address
        error.request_id = error.request_id or call.request_id
        raise

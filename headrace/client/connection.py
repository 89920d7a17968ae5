"""Where the service is, with which token, and what both clients make of httpx' failures."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from headrace.client.errors import CallFailed, TimedOut, Unavailable
from headrace.client.requests import Call

ADDRESS = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
UPLOAD_BYTES_PER_SECOND = 1 << 16
"""A file's upload gets a second more for each 64 KiB: what a slow line carries."""
Verify = bool | str | Path | ssl.SSLContext
"""Whether the door's certificate is checked; or by which authority, as a PEM file (`.headrace/tls/authority.pem`)."""


Token = str | Callable[[], str]
"""Or a function that is asked with every try, for a token that changes."""


def options(address: str | None, token: Token | None, verify: Verify) -> dict[str, Any]:
    """Arguments of httpx' clients; what is not given comes from `HEADRACE_ADDRESS` and `HEADRACE_TOKEN`.

    Raises:
        CallFailed: `verify` names a file that cannot be read, or that holds no certificate.
    """
    token = token or os.environ.get("HEADRACE_TOKEN")
    headers = {"accept-encoding": "identity", "user-agent": "headrace-client"}
    if isinstance(verify, str | Path):
        verify = _trusting(verify)
    return {
        "base_url": address or os.environ.get("HEADRACE_ADDRESS") or ADDRESS,
        "headers": headers,
        "auth": _bearer(token) if token else None,
        "verify": verify,
        "limits": httpx.Limits(max_connections=64, max_keepalive_connections=64),
        "follow_redirects": False,  # a token goes nowhere but to the address that it was given for
    }


def _trusting(authority: str | Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(authority))
    except OSError as error:  # an error of SSL is one too, and neither names the file
        why = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        hint = "give a copy of the door's own .headrace/tls/authority.pem"
        raise CallFailed(f"{authority}: {why}", where="verify", hint=hint) from None


def _bearer(token: Token) -> Callable[[httpx.Request], httpx.Request]:
    def sign(request: httpx.Request) -> httpx.Request:
        request.headers["authorization"] = f"Bearer {(token() if callable(token) else token).strip()}"
        return request

    return sign


def seconds_for(call: Call, timeout: float) -> float:
    """The whole time of a call."""
    return timeout if call.file is None else timeout + call.file.stat().st_size / UPLOAD_BYTES_PER_SECOND


def limits(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))


@contextmanager
def failures(call: Call, address: str) -> Iterator[None]:
    """httpx' failures as this package's, with the request's id."""
    try:
        yield
    except httpx.ConnectTimeout:
        raise Unavailable("the service cannot be reached", where=address, request_id=call.request_id) from None
    except httpx.TimeoutException:
        raise TimedOut("no answer in time", where=address, request_id=call.request_id) from None
    except httpx.TransportError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):  # another try would end alike
            message, hint = (
                "the certificate is not one that is trusted here",
                "verify='authority.pem', a copy of the door's own",
            )
            raise CallFailed(f"{message} ({error})", where=address, hint=hint, request_id=call.request_id) from None
        raise Unavailable(f"the service does not answer ({error})", where=address, request_id=call.request_id) from None
    except CallFailed as error:
        error.where = error.where or address
        error.request_id = error.request_id or call.request_id
        raise

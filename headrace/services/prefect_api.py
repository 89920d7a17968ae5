"""Requests to Prefect's API with the project's secret, and with the token that Prefect demands for changes (CSRF)."""

from __future__ import annotations

import time
import uuid
from typing import Any

from headrace.project import Project
from headrace.services.authentication.credentials import basic, credential
from headrace.serving.local_http import Response, try_request
from headrace.settings import LOOPBACK

CLIENT = str(uuid.uuid4())
"""Prefect gives each client its own token."""
TOKEN_SECONDS = 600.0
"""How long a token is used again; Prefect accepts it for an hour."""
ANSWER_SECONDS = 20.0

_tokens: dict[tuple[int, str], tuple[float, str]] = {}
"""Port and secret of a server, to when its token was fetched, and the token."""


def call(project: Project, path: str, method: str = "GET", body: Any = None) -> Response | None:
    """Sends one request and returns the answer; None when Prefect's server does not answer.

    Args:
        path: below `/api`, for example `/flow_runs/filter`.
        body: sent as JSON.

    Raises:
        DamagedFile: the file of the secret has no secret.
    """
    port, authorization = project.settings.prefect_port, basic(credential(project, "prefect") or "")
    for attempt in range(2):
        headers = {"authorization": authorization}
        if method != "GET":
            token = _csrf_token(port, authorization, is_new=attempt > 0)
            if not isinstance(token, str):
                return token
            headers |= {"prefect-csrf-token": token, "prefect-csrf-client": CLIENT}
        answer = _send(port, f"/api{path}", method=method, body=body, headers=headers)
        if method == "GET" or answer is None or answer.status != 403:  # 403: the server began with a new database
            break
    return answer


def _csrf_token(port: int, authorization: str, is_new: bool) -> str | Response | None:
    """Returns a token, or the answer that has none."""
    fetched, token = _tokens.get((port, authorization), (0.0, ""))
    if token and not is_new and time.monotonic() - fetched < TOKEN_SECONDS:
        return token
    answer = _send(port, f"/api/csrf-token?client={CLIENT}", headers={"authorization": authorization})
    if answer is None or answer.status != 200:
        return answer
    token = str(answer.json()["token"])
    _tokens[port, authorization] = (time.monotonic(), token)
    return token


def _send(port: int, path: str, **options: Any) -> Response | None:
    return try_request((LOOPBACK, port), path, timeout_seconds=ANSWER_SECONDS, **options)

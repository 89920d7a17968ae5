"""The Python client with the project's address, token and certificate, and hints for users of the command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from headrace.project import Project

if TYPE_CHECKING:
    from headrace.client import CallFailed, Client

EXTRA_SECONDS = 5.0
"""Added to the time limit of the gateway, so that its own error arrives first."""


@contextlib.contextmanager
def gateway_client(project: Project, model: str | None = None, retries: int = 3) -> Iterator[Client]:
    """A client with the token in `HEADRACE_TOKEN`, or the operator's. Adds hints to its errors; `model` is the model called.

    Raises:
        CallFailed: a call failed.
    """
    from headrace.client import CallFailed, Client
    from headrace.serving.access.tls import trust
    from headrace.serving.access.tokens import operator_token
    from headrace.serving.gateway.gateway import address

    token = _given_token() or (operator_token(project) if project.settings.access == "tokens" else None)
    timeout = project.settings.request_seconds + EXTRA_SECONDS
    with Client(address(project.settings), token, timeout=timeout, retries=retries, verify=trust(project)) as client:
        try:
            yield client
        except CallFailed as error:
            error.hint = _hint(error, model, address(project.settings), token is not None) or error.hint
            raise


def _given_token() -> str:
    return os.environ.get("HEADRACE_TOKEN", "").strip()


def _hint(error: CallFailed, model: str | None, address: str, has_token: bool) -> str | None:
    from headrace.client import Forbidden, InvalidInput, NotFound, StreamInterrupted, Unauthorized, Unavailable

    if isinstance(error, Unauthorized | Forbidden):
        # The operator's token allows everything: if it is refused, the gateway was started with another key.
        changed = f"unset it to call as the operator, or set one that allows {model or 'this call'}"
        return f"the token is from HEADRACE_TOKEN: {changed}" if _given_token() else "headrace up"
    if type(error) is Unavailable and error.status is None:
        return "headrace up"
    if model is None:
        return None
    if isinstance(error, NotFound):
        return "see what is served: headrace status; release another model: headrace run NAME"
    if isinstance(error, InvalidInput):
        from headrace import console

        bearer = f' -H "authorization: Bearer $({console.command_name()} tokens show)"' if has_token else ""
        return f"see the fields of the model: curl{bearer} {address}/v1/models/{model}"
    again = "run the command again; " if isinstance(error, StreamInterrupted) and error.code is None else ""
    return f"{again}headrace logs {model}"

"""The Python client with the project's address, token and certificate, and hints for users of the command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headrace.errors import UsageError
from headrace.project import Project

if TYPE_CHECKING:
    from headrace.client import AsyncClient, CallFailed, Client

EXTRA_SECONDS = 5.0
"""Added to the time limit of the gateway, so that its own error arrives first."""


@contextlib.contextmanager
def gateway_client(project: Project, model: str | None = None, retries: int = 3) -> Iterator[Client]:
    """A client with the token in `HEADRACE_TOKEN`, or the operator's. Adds hints to its errors; `model` is the model called.

    Raises:
        CallFailed: a call failed.
    """
    from headrace.client import CallFailed, Client

    options = client_options(project)
    with Client(**options, retries=retries) as client:
        try:
            yield client
        except CallFailed as error:
            error.hint = error.hint or _hint(error, model, options["address"], options["token"] is not None)
            raise


def client_options(project: Project) -> dict[str, Any]:
    """Returns the address, token, time limit and certificate of the project's gateway, as arguments of a client."""
    from headrace.serving.access.tls import trust
    from headrace.serving.access.tokens import operator_token
    from headrace.serving.gateway.gateway import address

    token = given_token() or (operator_token(project) if project.settings.access == "tokens" else None)
    timeout = project.settings.request_seconds + EXTRA_SECONDS
    return {"address": address(project.settings), "token": token, "timeout": timeout, "verify": trust(project)}


@contextlib.contextmanager
def client_of(address: str | None, model: str | None = None) -> Iterator[Client]:
    """A client of the gateway at `address`, or without one of the project of the working folder; errors as of these."""
    if address is not None:
        with remote_client(address, role=None) as client:
            yield client
        return
    from headrace.cli.shared import load_project

    with gateway_client(load_project(), model) as client:
        yield client


def async_client_of(address: str | None) -> AsyncClient:
    """Returns an asynchronous client as `client_of` does, without hints in its errors."""
    from headrace.cli.shared import load_project
    from headrace.client import AsyncClient

    if address is not None:
        return AsyncClient(address, given_token())
    return AsyncClient(**client_options(load_project()), retries=4)


@contextlib.contextmanager
def remote_client(address: str, role: str | None = "reviewer") -> Iterator[Client]:
    """A client of the gateway of another machine, with the token in `HEADRACE_TOKEN`, of this role. A server's refusal is a
    wrong input.

    Raises:
        UsageError: a token is missing, or the server refuses the request for a reason that the user can change.
        CallFailed: the call failed.
    """
    from headrace.client import CallFailed, Client, InvalidInput, NotFound

    # Not the operator's own: it is for this project, and would go to another machine.
    if not given_token():
        of_role = f" --role {role}" if role else ""
        hint = f"ask the operator there for one: headrace tokens issue --tenant NAME{of_role}"
        raise UsageError(f"a token is needed for {address}", where="HEADRACE_TOKEN", hint=hint)
    with Client(address, given_token()) as client:
        try:
            yield client
        except (NotFound, InvalidInput) as error:
            raise UsageError(error.message, where=error.where, hint=error.details.get("hint")) from None
        except CallFailed as error:
            error.hint = error.details.get("hint") or error.hint
            raise


def given_token() -> str:
    """The token in `HEADRACE_TOKEN`; empty without one."""
    return os.environ.get("HEADRACE_TOKEN", "").strip()


def _hint(error: CallFailed, model: str | None, address: str, has_token: bool) -> str | None:
    from headrace.client import Forbidden, InvalidInput, NotFound, StreamInterrupted, Unauthorized, Unavailable

    if isinstance(error, Unauthorized | Forbidden):
        # The operator's token allows everything: if it is refused, the gateway was started with another key.
        changed = f"unset it to call as the operator, or set one that allows {model or 'this call'}"
        return f"the token is from HEADRACE_TOKEN: {changed}" if given_token() else "headrace up"
    if type(error) is Unavailable and error.status is None:
        return "headrace up"
    if model is None:
        return None
    if isinstance(error, NotFound):
        return "see what is served: headrace status; release another model: headrace run NAME"
    if isinstance(error, InvalidInput):
        from headrace import console

        # By a pipe: every user of the machine can read the arguments of a command.
        token = f'echo "authorization: Bearer $({console.command_name()} tokens show)" | ' if has_token else ""
        return f"see the fields of the model: {token}curl{' -H @-' if has_token else ''} {address}/v1/models/{model}"
    again = "run the command again; " if isinstance(error, StreamInterrupted) and error.code is None else ""
    return f"{again}headrace logs {model}"

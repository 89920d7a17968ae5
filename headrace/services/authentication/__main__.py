"""Runs MLflow's or Prefect's server behind authentication: `python -m headrace.services.authentication mlflow 5000`."""

from __future__ import annotations

import importlib
import sys

import uvicorn

from headrace.errors import HeadraceError, ServiceError
from headrace.project import find_project
from headrace.runtime.token_verifier import TokenVerifier
from headrace.services.authentication import STARTED
from headrace.services.authentication.app import Asgi, Authenticated
from headrace.services.authentication.credentials import credential
from headrace.services.prefect_database import let_heartbeats_wait
from headrace.settings import LOOPBACK

FACTORIES = {"prefect": ("prefect.server.api.server", "create_app"), "mlflow": ("mlflow.server.fastapi_app", "app")}


def application(server: str) -> Asgi:
    """Returns what `prefect server start` or `mlflow server` would serve."""
    module, name = FACTORIES[server]
    found: Asgi = getattr(importlib.import_module(module), name)
    if server == "prefect":
        let_heartbeats_wait()
        found = found(final=True)  # type: ignore[call-arg, assignment]
    return found


def main(server: str, port: int) -> int:
    """Serves on loopback until it is stopped."""
    try:
        project = find_project()
        secret = credential(project, server)
        if secret is None:
            raise ServiceError(f"the secret of {server} is missing", where=".headrace/keys", hint="headrace up makes it")
    except HeadraceError as error:
        sys.stderr.write(f"error {error}\n")
        return error.exit_code
    tokens = TokenVerifier(project.token_keys) if server == "mlflow" else None
    app = Authenticated(application(server), server, port, secret, tokens)
    sys.stderr.write(f"{STARTED} {server} on port {port}\n")
    # Without forwarded headers, which would let a client name another address as its own.
    uvicorn.run(app, host=LOOPBACK, port=port, log_level="warning", proxy_headers=False, server_header=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

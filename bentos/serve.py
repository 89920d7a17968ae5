"""Serves a built bento in this one process: `python -P -m bentos.serve BENTO --host 127.0.0.1 --port 3000`.

`bentoml serve` keeps a supervisor beside its worker; here supervisord, Docker or Kubernetes is the supervisor.
"""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from typing import Any

import bentoml
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

KEEP_ALIVE_SECONDS = 75
"""Longer than a balancer keeps an idle connection, so that it never sends into one that is being closed."""


class Front:
    """Sends prediction routes straight to the mounted app, past BentoML's middleware; the rest is BentoML's."""

    def __init__(self, predictions: ASGIApp, bento: ASGIApp) -> None:
        self.predictions = predictions
        self.bento = bento

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        direct = scope["type"] == "http" and scope["path"].startswith("/v1/")
        await (self.predictions if direct else self.bento)(scope, receive, send)


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # uvicorn sends itself the signal again after its orderly end; a stop that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Bound now, so that a taken port shows at once; uvicorn listens only when the model has predicted its sample.
    bound = _bind(options.host, options.port)
    service: Any = bentoml.load(options.bento, standalone_load=True)
    (mounted, _, _), *_ = service.mount_apps
    config = uvicorn.Config(
        Front(mounted, service.to_asgi()),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    # Only SIGTERM's sender limits how long requests in flight may take: it has the drain time and SIGKILL.
    uvicorn.Server(config).run(sockets=[bound])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bentos.serve", description=__doc__)
    parser.add_argument("bento", help="path of a built bento")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3000)
    return parser.parse_args(argv)


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        sys.exit(f"cannot listen on {host}:{port}: {error.strerror}")
    return bound


if __name__ == "__main__":
    main()

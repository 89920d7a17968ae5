"""Serves a built bento in this one process: `python -P -m bentos.serve BENTO --socket FOLDER/replica.sock`.

`bentoml serve` runs a supervisor beside its worker; here supervisord, Docker or Kubernetes is the supervisor. The path of the
model is read from the bento's own files, because importing BentoML would cost 25 MB and half a second.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import uvicorn
import yaml
from starlette.types import Receive, Scope, Send

from bentos.app import PredictionApp
from bentos.connection import server_config
from bentos.models.onnx_model import load, threads_from_environment
from headrace.runtime.unix_socket import bind

SWITCH_SECONDS = 0.001
"""Longest time for which the prediction thread keeps the GIL from the event loop; Python's default is five times as long."""


class ReplicaApp:
    """The prediction app with ASGI lifespan: the model is loaded at start-up, before the server listens."""

    def __init__(self, bento: Path) -> None:
        self._bento = bento
        self._app = PredictionApp()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._app.model = load(model_folder(self._bento), threads_from_environment())
            self._app.start()
            _tune_garbage_collector()
        except Exception:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._app.close()
        await send({"type": "lifespan.shutdown.complete"})


def model_folder(bento: Path) -> Path:
    """Returns the folder of a bento's model: inside the bento, as in a container image, or in BentoML's model store."""
    described = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))
    name, _, version = str(described["args"]["model"]).partition(":")
    inside = bento / "models" / name / version
    home = Path(os.environ.get("BENTOML_HOME", Path.home() / "bentoml"))
    return inside if inside.is_dir() else home / "models" / name / version


def _tune_garbage_collector() -> None:
    """Exempts loaded objects and collects rarely: a request creates no cycles, and a collection costs a prediction's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    # uvicorn raises the signal again after its shutdown; a requested stop is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Bind now, so that a used address fails at once; uvicorn only listens when the model has predicted its sample.
    bound = _bind_socket(options.socket, options.in_container) if options.socket else _bind(options.host, options.port)
    # No limit for requests in flight here: the sender of SIGTERM has a drain time and SIGKILL.
    uvicorn.Server(server_config(ReplicaApp(Path(options.bento)))).run(sockets=[bound])


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bentos.serve", description=__doc__)
    parser.add_argument("bento", help="path of a built bento")
    parser.add_argument("--socket", type=Path, help="path of a Unix socket to listen on, instead of a host and a port")
    parser.add_argument(
        "--in-container", action="store_true", help="let every user connect to the socket: its folder is closed outside"
    )
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


def _bind_socket(path: Path, in_container: bool) -> socket.socket:
    try:
        return bind(path, in_container)
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

"""Serves a built bento in this one process: `python -P -m bentos.serve BENTO --host 127.0.0.1 --port 3000`.

`bentoml serve` keeps a supervisor beside its worker; here supervisord, Docker or Kubernetes is the supervisor. A bento says in
its own files where its model lies, so that BentoML, which costs 25 MB and half a second, need not be imported to find it.
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
from bentos.models.served_model import load, threads_given

SWITCH_SECONDS = 0.001
"""For so long the thread that predicts keeps Python's lock from the event loop; five times as long by default."""


class Replica:
    """The app with its beginning and end: the model is loaded when the server starts, before it listens."""

    def __init__(self, bento: Path) -> None:
        self._bento = bento
        self._app = PredictionApp()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            self._app.model = load(model_folder(self._bento), threads_given())
            self._app.start()
            _quieten_collector()
        except Exception:
            await send({"type": "lifespan.startup.failed", "message": traceback.format_exc()})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._app.close()
        await send({"type": "lifespan.shutdown.complete"})


def model_folder(bento: Path) -> Path:
    """Where a bento's model lies: inside it, as in an image, or in BentoML's store."""
    said = yaml.safe_load((bento / "bento.yaml").read_text(encoding="utf-8"))
    name, _, version = str(said["args"]["model"]).partition(":")
    inside = bento / "models" / name / version
    home = Path(os.environ.get("BENTOML_HOME", Path.home() / "bentoml"))
    return inside if inside.is_dir() else home / "models" / name / version


def _quieten_collector() -> None:
    """What is loaded by now stays; a request's lists make no cycles, and looking for some costs as much as a prediction."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def main(argv: list[str] | None = None) -> None:
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    # uvicorn sends itself the signal again after its orderly end; a stop that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Bound now, so that a taken port shows at once; uvicorn listens only when the model has predicted its sample.
    bound = _bind(options.host, options.port)
    # Only SIGTERM's sender limits how long requests in flight may take: it has the drain time and SIGKILL.
    uvicorn.Server(server_config(Replica(Path(options.bento)))).run(sockets=[bound])


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

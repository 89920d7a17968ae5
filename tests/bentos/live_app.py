"""Apps on sockets of their own, for clients that speak HTTP themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bentos.app import PredictionApp
from bentos.models.onnx_model import load


@contextmanager
def live_app(folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    """The prediction app with the model in `folder`, and `host:port` where it listens until the block ends."""
    app = PredictionApp()
    app.model = load(folder)
    try:
        with listening(uvicorn.Config(app, log_level="error", access_log=False)) as address:
            yield app, address
    finally:
        app.close()


@contextmanager
def listening(config: uvicorn.Config) -> Iterator[str]:
    """A server as `config` says, on a free port of loopback: `host:port`."""
    config.lifespan, config.port = "off", 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        (bound,) = server.servers[0].sockets
        yield f"127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

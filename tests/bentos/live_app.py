"""A prediction app on a socket of its own, for clients that speak HTTP themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from bentos.app import PredictionApp
from bentos.model import load


@contextmanager
def live_app(folder: Path) -> Iterator[tuple[PredictionApp, str]]:
    """The app with the model in `folder`, and `host:port` where it listens until the block ends."""
    app = PredictionApp()
    app.model = load(folder)
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        (listening,) = server.servers[0].sockets
        yield app, f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        app.close()

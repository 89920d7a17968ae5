"""A real replica of the model in a folder, without a bento: `python -m tests.services.api.replica FOLDER SOCKET`."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from bentos.app import PredictionApp
from bentos.models.onnx_model import load
from headrace.runtime.unix_socket import bind


class Replica:
    """The app, which starts and closes with the server."""

    def __init__(self, folder: Path) -> None:
        self.app = PredictionApp()
        self.app.model = load(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        await receive()
        self.app.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.app.close()
        await send({"type": "lifespan.shutdown.complete"})


if __name__ == "__main__":
    config = uvicorn.Config(Replica(Path(sys.argv[1])), http="httptools", ws="none", log_level="warning")
    uvicorn.Server(config).run(sockets=[bind(Path(sys.argv[2]))])

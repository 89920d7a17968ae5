"""A replica whose model can be made to hang: `python hanging_replica.py MODEL PORT`, with HEADRACE_STUCK_SECONDS."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from bentos.app import PredictionApp
from bentos.models import progress
from bentos.models.onnx_model import load
from headrace.runtime.http import to_json


def _sleep(seconds: float, reports: bool) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        if reports:
            progress.report()


def main() -> None:
    app = PredictionApp()
    app.model = load(Path(sys.argv[1]))

    async def hang(request: Request) -> Response:
        where = request.path_params["where"]
        if where == "loop":
            time.sleep(60)
        await app.run(1 << 30, lambda: _sleep(60 if where == "model" else 1.5, reports=where == "slow"))
        return to_json({})

    app.routes.append(Route("/hang/{where}", hang))

    async def serve() -> None:
        app.start()
        config = uvicorn.Config(app, port=int(sys.argv[2]), lifespan="off", log_level="warning")
        await uvicorn.Server(config).serve()

    asyncio.run(serve())


if __name__ == "__main__":
    main()

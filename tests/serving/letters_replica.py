"""A real language model in the real app, slowed down: `letters_replica.py FOLDER SOCKET`.

It generates one text at a time, so that the next request shows whether the previous one has ended.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bentos.app import PredictionApp
from bentos.models.generation import GenerationModel
from headrace.runtime.generation import Session
from headrace.runtime.unix_socket import bind

PACE_SECONDS = 0.02
"""Time for each token."""


class SlowSession:
    """A session that sleeps before every step."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, names: list[str] | None, feeds: dict[str, Any]) -> list[Any]:
        time.sleep(PACE_SECONDS)
        return self._session.run(names, feeds)


def main(folder: str, socket: str) -> None:
    predictions = PredictionApp()
    model = GenerationModel(Path(folder))
    model.generator.session = cast(Session, SlowSession(model.generator.session))
    predictions.model = model
    predictions.streams.slots.limit = 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = Response() if scope["path"] == "/readyz" else predictions
        await found(scope, receive, send)

    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[bind(Path(socket))])


if __name__ == "__main__":
    main(*sys.argv[1:3])

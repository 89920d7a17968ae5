"""A real language model in the real app, which takes its time: `letters_replica.py FOLDER PORT`.

It writes one text at a time, so that the next one shows whether the last has left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bentos import streams
from bentos.app import PredictionApp
from bentos.generation import GenerationModel

PACE_SECONDS = 0.02
"""Each token takes so long."""


class Paced(GenerationModel):
    def streams(self, instances: list[Any]) -> list[Iterator[dict[str, Any]]]:
        return [self._pace(events) for events in super().streams(instances)]

    def _pace(self, events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for event in events:
            time.sleep(PACE_SECONDS)
            yield event


def main(folder: str, port: str) -> None:
    predictions = PredictionApp()
    predictions.model = Paced(Path(folder))
    streams.MAX_TEXTS = 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        found = Response() if scope["path"] == "/readyz" else predictions
        await found(scope, receive, send)

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", lifespan="off", timeout_keep_alive=75)


if __name__ == "__main__":
    main(*sys.argv[1:3])

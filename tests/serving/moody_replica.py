"""A small real server that answers as its mood is, counts answers and keeps them: `moody_replica.py MODEL VERSION PORT MOOD`.

`good` labels half of the requests `a` and half `b`, by their id; `errors` fails for a quarter of them; `slow` takes 60 ms
longer; `other` says `a` to all; `dies` ends at its fifth request.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import zlib
from collections import Counter
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

SAMPLE = {"sample": True}


def app(model: str, version: str, mood: str) -> Starlette:
    answers: Counter[str] = Counter()
    records = Path(os.environ["HEADRACE_LEDGER"]) / "answers-1.jsonl"
    asked = 0

    async def readyz(request: Request) -> Response:
        return Response()

    async def describe(request: Request) -> Response:
        return JSONResponse({"model": model, "version": version, "contract": {"sample": SAMPLE}})

    async def predict(request: Request) -> Response:
        nonlocal asked
        found = {"model": model, "version": version, "predictions": []}
        (instance,) = (await request.json())["instances"]
        if instance == SAMPLE:
            return JSONResponse(found)
        await asyncio.sleep(instance.get("wait", 0))
        asked += 1
        if mood == "dies" and asked == 5:
            os._exit(1)
        name = request.headers.get("x-request-id", "")
        chance = zlib.crc32(name.encode()) % 4
        if mood == "errors" and chance == 0:
            return JSONResponse({"error": {"code": "internal", "message": "no"}}, status_code=500)
        if mood == "slow":
            await asyncio.sleep(0.06)
        answer = "a" if mood == "other" or chance < 2 else "b"
        answers[answer] += 1
        with records.open("a") as handle:
            handle.write(json.dumps({"id": name, "version": version, "answers": [answer]}) + "\n")
        return JSONResponse({**found, "predictions": [answer]})

    async def metrics(request: Request) -> Response:
        labels = f'model="{model}",version="{version}"'
        lines = [f'headrace_answers_total{{{labels},answer="{answer}"}} {count}' for answer, count in answers.items()]
        return PlainTextResponse("# TYPE headrace_answers_total counter\n" + "\n".join(lines) + "\n")

    return Starlette(
        routes=[
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route(f"/v1/models/{model}", describe),
            Route(f"/v1/models/{model}/predict", predict, methods=["POST"]),
        ]
    )


if __name__ == "__main__":
    name, said_version, port, mood = sys.argv[1:5]
    uvicorn.run(app(name, said_version, mood), host="127.0.0.1", port=int(port), log_level="warning", timeout_keep_alive=75)

"""A small real server with a fault; it counts and records its answers: `misbehaving_replica.py MODEL VERSION SOCKET FAULT`.

`good` labels half of the requests `a` and half `b`, by their id; `errors` fails for a quarter of them; `slow` takes 60 ms
longer; `other` answers `a` to all; `dies` exits at its fifth request.
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

from headrace.runtime.unix_socket import bind

SAMPLE = {"sample": True}


def app(model: str, version: str, fault: str) -> Starlette:
    answers: Counter[str] = Counter()
    records = Path(os.environ["HEADRACE_USAGE"]) / "answers-1.jsonl"
    requests = 0

    async def readyz(request: Request) -> Response:
        return Response()

    async def describe(request: Request) -> Response:
        return JSONResponse({"model": model, "version": version, "contract": {"sample": SAMPLE}})

    async def predict(request: Request) -> Response:
        nonlocal requests
        found = {"model": model, "version": version, "predictions": []}
        (instance,) = (await request.json())["instances"]
        if instance == SAMPLE:
            return JSONResponse(found)
        await asyncio.sleep(instance.get("wait", 0))
        requests += 1
        if fault == "dies" and requests == 5:
            os._exit(1)
        name = request.headers.get("x-request-id", "")
        chance = zlib.crc32(name.encode()) % 4
        if fault == "errors" and chance == 0:
            return JSONResponse({"error": {"code": "internal", "message": "no"}}, status_code=500)
        if fault == "slow":
            await asyncio.sleep(0.06)
        answer = "a" if fault == "other" or chance < 2 else "b"
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
    name, answered_version, socket, fault = sys.argv[1:5]
    config = uvicorn.Config(app(name, answered_version, fault), log_level="warning", timeout_keep_alive=75)
    uvicorn.Server(config).run(sockets=[bind(Path(socket))])

"""A small real server with the routes of a replica: `python echo_replica.py MODEL VERSION SOCKET [READY_AFTER]`.

With a number as SOCKET it listens on that port, as replicas of earlier versions did.

`{"instances": [{"wait": 0.2}]}` takes 0.2 s. READY_AFTER `never` stays unready, `crash` exits before it listens.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from socket import create_server

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bentos.connection import server_config
from headrace.runtime.unix_socket import bind


def app(model: str, version: str, ready_after: str) -> Starlette:
    async def readyz(request: Request) -> Response:
        return Response(status_code=503 if ready_after == "never" else 200)

    async def describe(request: Request) -> Response:
        return JSONResponse({"model": model, "version": version, "contract": {"sample": {"wait": 0}}})

    async def predict(request: Request) -> Response:
        instances = (await request.json())["instances"]
        await asyncio.sleep(sum(float(instance.get("wait", 0)) for instance in instances))
        return JSONResponse(
            {
                "model": model,
                "version": version,
                "pid": os.getpid(),
                "predictions": instances,
                "request_id": request.headers.get("x-request-id"),
            }
        )

    async def echo(request: Request) -> Response:
        body = await request.body()
        seen.append(request.headers.get("x-request-id", ""))
        return JSONResponse(
            {
                "model": model,
                "version": version,
                "path": request.url.path,
                "headers": [[name.decode(), value.decode("latin-1")] for name, value in request.scope["headers"]],
                "bytes": len(body),
                # Only here: a long answer may be half sent when the replica is killed.
                **({"seen": seen} if request.url.path.endswith("/seen") else {}),
            }
        )

    seen: list[str] = []
    return Starlette(
        routes=[
            Route("/readyz", readyz),
            Route(f"/v1/models/{model}", describe),
            Route(f"/v1/models/{model}/predict", predict, methods=["POST"]),
            Route("/{path:path}", echo, methods=["GET", "POST"]),
        ]
    )


if __name__ == "__main__":
    name, answered_version, socket, ready = sys.argv[1:5]
    if ready == "crash":
        sys.exit("the graph and the contract disagree")
    config = server_config(app(name, answered_version, ready))
    bound = create_server(("127.0.0.1", int(socket))) if socket.isdigit() else bind(Path(socket))
    uvicorn.Server(config).run(sockets=[bound])

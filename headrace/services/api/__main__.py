"""Runs the API server, on a Unix socket only: `python -m headrace.services.api`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvicorn
import uvloop

from headrace.errors import HeadraceError, ServiceError
from headrace.project import find_project
from headrace.runtime.unix_socket import bind
from headrace.services.api.app import ApiServer


async def serve(server: ApiServer, path: Path) -> None:
    """
    Raises:
        ServiceError: other users can enter the folder of the socket, or another server listens there.
    """
    try:
        bound = bind(path)
    except OSError as error:
        raise ServiceError(str(error), hint="headrace down, then headrace up") from None
    config = uvicorn.Config(
        server,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=20,
    )
    async with server:
        await uvicorn.Server(config).serve(sockets=[bound])


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # uvicorn sends itself the signal again after a graceful shutdown, which is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        project = find_project()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(ApiServer(project), project.api_socket))
    except HeadraceError as error:
        sys.stderr.write(f"error {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

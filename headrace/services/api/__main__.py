"""Runs the API server, on loopback only: `python -m headrace.services.api`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvicorn
import uvloop

from headrace.errors import HeadraceError
from headrace.project import find_project
from headrace.services.api.app import ApiServer

HOST = "127.0.0.1"


async def serve(server: ApiServer, port: int) -> None:
    config = uvicorn.Config(
        server,
        host=HOST,
        port=port,
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
        await uvicorn.Server(config).serve()


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # uvicorn sends itself the signal again after a graceful shutdown, which is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        project = find_project()
        settings = project.settings
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(ApiServer(project), settings.api_port))
    except HeadraceError as error:
        sys.stderr.write(f"error {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

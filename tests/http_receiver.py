"""A server that keeps the JSON bodies that it is sent, and the thread of any server of the standard library."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Receiver(http.server.ThreadingHTTPServer):
    """Answers each POST with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.status, self.bodies = status, list[dict[str, Any]]()


class Hook(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@contextmanager
def running(server: Any) -> Iterator[Any]:
    """Serves in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

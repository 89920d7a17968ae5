"""A receiver of webhooks that verifies signatures as docs/schedules.md shows, and misbehaves on request."""

from __future__ import annotations

import base64
import http.server
import json
import re
from collections.abc import Callable
from typing import Any

from tests.paths import ROOT

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes, ok").decode()


class WebhookServer(http.server.ThreadingHTTPServer):
    """Answers with the statuses of `answers`, then with 204; keeps what it is sent."""

    daemon_threads = True

    def __init__(self, *answers: int) -> None:
        super().__init__(("127.0.0.1", 0), Hook)
        self.answers = list(answers)
        self.attempts = list[str]()
        """Id of each request."""
        self.received = list[dict[str, Any]]()
        """Bodies that were accepted."""
        self.headers = list[dict[str, str]]()
        self.headers_of_answer: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/t0ken"


class Hook(http.server.BaseHTTPRequestHandler):
    server: WebhookServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.attempts.append(headers["webhook-id"])
        status = self.server.answers.pop(0) if self.server.answers else 204
        if status < 300:
            assert is_genuine(headers, body, SECRET)
            self.server.received.append(json.loads(body))
            self.server.headers.append(headers)
        self.send_response(status)
        for name, value in self.server.headers_of_answer.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def _documented() -> Callable[[dict[str, str], bytes, str], bool]:
    """The function `is_genuine` of docs/schedules.md."""
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    found: Callable[[dict[str, str], bytes, str], bool] = names["is_genuine"]
    return found


is_genuine = _documented()

"""A receiver of webhooks that verifies signatures as docs/schedules.md shows, and misbehaves when told to."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import time
from typing import Any

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
            assert is_genuine(headers, body)
            self.server.received.append(json.loads(body))
            self.server.headers.append(headers)
        self.send_response(status)
        for name, value in self.server.headers_of_answer.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


def is_genuine(headers: dict[str, str], body: bytes) -> bool:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
    is_recent = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    given = [one.removeprefix("v1,") for one in headers["webhook-signature"].split()]
    return is_recent and any(hmac.compare_digest(expected, one) for one in given)

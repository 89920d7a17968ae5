"""Small HTTP requests: what is sent, what comes back, and which errors a caller sees."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from headrace.serving.local_http import request, try_request


class _Echo(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(404, "text/plain; charset=utf-8", b"nothing here")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        seen = {"body": json.loads(body), "authorization": self.headers["authorization"], "path": self.path}
        self._answer(200, "application/json", json.dumps(seen).encode())

    def _answer(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    server = HTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "127.0.0.1", server.server_port
    server.shutdown()
    server.server_close()


@contextmanager
def server_that_sends(raw: bytes) -> Iterator[tuple[str, int]]:
    """Accepts one connection, sends `raw` once a request came, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join()


def test_a_body_is_sent_as_json_with_the_token(address: tuple[str, int]) -> None:
    answer = request(address, "/a?b=c", method="POST", body={"x": [1]}, token="secret")
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json() == {"body": {"x": [1]}, "authorization": "Bearer secret", "path": "/a?b=c"}


def test_any_status_is_an_answer_and_text_stays_text(address: tuple[str, int]) -> None:
    answer = request(address, "/")
    assert (answer.status, answer.content_type, answer.text) == (404, "text/plain", "nothing here")
    assert answer.json_or_text() == "nothing here"
    with pytest.raises(ValueError, match="Expecting value"):
        answer.json()


def test_without_a_listener_a_connection_error_is_raised() -> None:
    with socket.socket() as bound:  # bound, and not listening
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionError):
            request(bound.getsockname(), "/")
        assert try_request(bound.getsockname(), "/") is None


def test_a_connection_closed_without_an_answer_is_a_connection_error() -> None:
    with server_that_sends(b"") as address, pytest.raises(ConnectionError):
        request(address, "/")


@pytest.mark.parametrize("raw", [b"not http\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"])
def test_an_answer_that_is_broken_is_an_os_error(raw: bytes) -> None:
    with server_that_sends(raw) as address, pytest.raises(OSError, match="no valid HTTP answer"):
        request(address, "/")
    with server_that_sends(raw) as address:
        assert try_request(address, "/") is None

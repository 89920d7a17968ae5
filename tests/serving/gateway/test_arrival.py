"""Time limits for a request to arrive, and for its answer, with a real Envoy and a shortened limit."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from headrace.files import private_folder
from headrace.project import Project
from headrace.runtime.unix_socket import bind
from headrace.serving.gateway import envoy_process, listener
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings

SECONDS = 1.0
DRIP_SECONDS = 0.1


@pytest.fixture
def digits(project: Project, settings: Settings, runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr(listener, "ARRIVAL_SECONDS", SECONDS)
    monkeypatch.setattr(listener, "FIRST_BYTES_SECONDS", SECONDS)
    rolling.roll_out(ReplicaSpec("digits", "1", "good"), 1, project.using(settings), runner, lambda line: None)
    with upload_server(project):
        yield settings


@contextmanager
def upload_server(project: Project) -> Iterator[None]:
    """A server in place of the API server: answers once the body is complete."""
    private_folder(project.sockets)
    server = bind(project.api_socket)
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as request:
                lines = iter(request.readline, b"\r\n")
                length = next((int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")), 0)
                for _ in iter(request.readline, b"\r\n") if length else ():
                    pass
                answer = json.dumps({"bytes": len(request.read(length))}).encode()
                with suppress(BrokenPipeError):  # the gateway has given up
                    connection.sendall(
                        b"HTTP/1.1 202 Accepted\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer
                    )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(5)


def drip(settings: Settings, path: str, body: bytes, seconds: float, silent: float = 0.0) -> tuple[int, float]:
    """Sends `body` in pieces over `seconds`, then waits `silent` before its last byte. Status, and when it came."""
    began = time.monotonic()
    pieces = max(1, round(seconds / DRIP_SECONDS))
    size = -(-(len(body) - 1) // pieces)
    with socket.create_connection(("127.0.0.1", settings.gateway_port), timeout=20) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode())
        response = http.client.HTTPResponse(client)
        try:
            for start in range(0, len(body) - 1, size):
                client.sendall(body[start : min(start + size, len(body) - 1)])
                time.sleep(DRIP_SECONDS)
            time.sleep(silent)
            client.sendall(body[-1:])
        except OSError:
            pass  # refused before the end
        response.begin()
        return response.status, time.monotonic() - began


def asks(wait: float) -> bytes:
    """The body of a request whose answer takes `wait` seconds."""
    return json.dumps({"instances": [{"wait": wait}]}).ljust(200).encode()


def test_a_slow_request_is_refused_in_time_and_a_slow_answer_is_not(digits: Settings) -> None:
    for path in ("/v1/models/digits/predict", "/v2/models/digits/infer", "/v1/completions"):
        status, after = drip(digits, path, asks(0), 5 * SECONDS)
        assert status == 408
        assert SECONDS <= after < 3 * SECONDS
    assert drip(digits, "/v1/models/digits/predict", asks(0), 0.5 * SECONDS)[0] == 200
    status, after = drip(digits, "/v1/models/digits/predict", asks(3 * SECONDS), 0.0)
    assert (status, after > 3 * SECONDS) == (200, True)


def test_a_batch_may_take_as_long_as_it_makes_progress(digits: Settings) -> None:
    status, after = drip(digits, "/v1/models/digits/batches", b"x" * 4000, 3 * SECONDS)
    assert (status, after > 3 * SECONDS) == (202, True)


def test_an_idle_upload_is_refused_by_the_gateway_when_the_api_server_does_not(
    digits: Settings, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = digits.model_copy(update={"upload_idle_seconds": 0.5, "request_seconds": 1.0})
    monkeypatch.setattr("headrace.serving.gateway.routes.EXTRA_SECONDS", 0.5)
    envoy_process.start(project.using(impatient))
    deadline = time.monotonic() + 20
    while drip(impatient, "/v1/models/digits/batches", b"x" * 40, 0.2, silent=2.0)[0] != 408:
        assert time.monotonic() < deadline
    assert drip(impatient, "/v1/models/digits/batches", b"x" * 4000, 2.0)[0] == 202


def test_a_connection_that_sends_nothing_is_closed_and_one_that_was_used_stays_open(digits: Settings) -> None:
    used = http.client.HTTPConnection("127.0.0.1", digits.gateway_port, timeout=20)
    with socket.create_connection(("127.0.0.1", digits.gateway_port), timeout=20) as silent:
        start = time.monotonic()
        used.request("GET", "/v1/models/digits")
        used.getresponse().read()
        connection = used.sock
        assert silent.recv(1) == b"", "closed by the gateway"
        assert SECONDS * 0.5 < time.monotonic() - start < SECONDS + 10
    time.sleep(SECONDS)
    used.request("GET", "/v1/models/digits")
    assert used.getresponse().status and used.sock is connection, "the same connection"
    used.close()

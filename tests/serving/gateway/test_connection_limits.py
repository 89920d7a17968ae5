"""One client address cannot use up the connections of all, with a real Envoy."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from headrace.project import Project
from headrace.serving.access import tls
from headrace.serving.gateway import connection_limits, listener
from headrace.serving.replicas.process_runner import ProcessRunner
from headrace.serving.replicas.replica import ReplicaSpec
from headrace.serving.rollout import rolling
from headrace.settings import Settings

ALL, ONE_ADDRESS, STRANGER = 2000, 500, 3000
STRANGER_ADDRESS = "127.0.0.1"


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def serve(project: Project, settings: Settings, runner: ProcessRunner, protocol: Literal["off", "self_signed"]) -> Settings:
    limited = settings.model_copy(update={"max_connections": ALL, "max_connections_per_address": ONE_ADDRESS, "tls": protocol})
    rolling.roll_out(ReplicaSpec("digits", "1", "good"), 1, project.using(limited), runner, lambda line: None)
    return limited


@contextlib.contextmanager
def connections(settings: Settings, count: int, first_bytes: bytes) -> Iterator[list[socket.socket]]:
    """Connections of a stranger that send `first_bytes` and then nothing."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(OSError):  # refused, which is what the limit is for
                one = stack.enter_context(socket.create_connection((STRANGER_ADDRESS, settings.gateway_port), timeout=20))
                found.append(one)
                one.sendall(first_bytes)
        yield found


def require_open(found: list[socket.socket], limit: int) -> None:
    """Waits until the gateway has closed all but `limit` of the connections, and requires that some are open."""
    deadline = time.monotonic() + 20
    while (count := open_among(found)) > limit:
        assert time.monotonic() < deadline, f"{count} connections are open"
        time.sleep(0.1)
    assert count > 0


def open_among(found: list[socket.socket]) -> int:
    """Counts the connections that the gateway has not closed."""
    count = 0
    for one in found:
        one.setblocking(False)
        try:
            while one.recv(1 << 16):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def ask(settings: Settings, source: str, authority: Path | None = None) -> int:
    address, body = ("127.0.0.1", settings.gateway_port), json.dumps({"instances": [{}]})
    connection = http.client.HTTPConnection(*address, timeout=20)
    connection.sock = socket.create_connection(address, 20, (source, 0))
    if authority is not None:
        connection.sock = ssl.create_default_context(cafile=str(authority)).wrap_socket(
            connection.sock, server_hostname="localhost"
        )
    connection.request("POST", "/v1/models/digits/predict", body, {"content-type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def ask_when_settled(settings: Settings, source: str, authority: Path | None = None) -> int:
    """The answer to the first request after a burst of connections: closing thousands takes a moment."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask(settings, source, authority)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_stranger_with_thousands_of_idle_connections_leaves_room_for_others(
    project: Project, settings: Settings, runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FIRST_BYTES_SECONDS", 5.0)
    limited = serve(project, settings, runner, "off")
    idle_after_an_answer, http2 = (
        b"GET /v1/models/digits HTTP/1.1\r\nhost: gateway\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    for first_bytes in (idle_after_an_answer, http2, b"", b"GET"):
        with connections(limited, STRANGER, first_bytes) as found:
            time.sleep(2 * connection_limits.SILENT_SECONDS)
            assert ask_when_settled(limited, "127.0.0.2") == 200
            assert [ask(limited, f"127.0.0.{other}") for other in range(2, 8)] == [200] * 6
            # On a slow machine the first bytes of some come so late that they count as silent.
            require_open(found, ONE_ADDRESS + ALL // connection_limits.SILENT_SHARE)
        assert ask_when_settled(limited, STRANGER_ADDRESS) == 200, "what it closed counts no more"


def test_the_limits_hold_with_tls_before_its_handshake_too(project: Project, settings: Settings, runner: ProcessRunner) -> None:
    limited = serve(project, settings, runner, "self_signed")
    authority = tls.authority(project.using(limited))
    with connections(limited, STRANGER, b"") as found:
        assert ask_when_settled(limited, "127.0.0.2", authority) == 200
        assert [ask(limited, f"127.0.0.{other}", authority) for other in range(2, 5)] == [200] * 3
        require_open(found, ONE_ADDRESS)

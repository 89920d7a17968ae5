from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from headrace.errors import PortTaken
from headrace.serving.replicas import ports


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def test_a_port_with_a_listener_is_not_free(listening: socket.socket) -> None:
    assert not ports.is_free(listening.getsockname()[1])


def test_the_owner_is_found_with_pid_and_command(listening: socket.socket) -> None:
    found = ports.find_owner(listening.getsockname()[1])
    assert found is not None
    assert found.pid == os.getpid()
    assert "python" in found.command


def test_a_port_in_use_is_an_error_with_its_owner_the_setting_and_a_free_port(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    with pytest.raises(PortTaken) as caught:
        ports.require_free(port, "mlflow_port")
    assert f"port {port} is in use by" in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message
    assert caught.value.where == "mlflow_port"
    assert "HEADRACE_MLFLOW_PORT" in (caught.value.hint or "")
    offered = int((caught.value.hint or "").split("mlflow_port = ")[1].split()[0])
    assert ports.is_free(offered)

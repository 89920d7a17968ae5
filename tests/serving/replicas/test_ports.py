from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.errors import PortTaken
from headrace.serving.replicas import ports
from tests.ports import free_ports


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


def test_two_processes_never_reserve_the_same_port(tmp_path: Path) -> None:
    """In this process and in another one, before any of them listens."""
    first = free_ports(1)[0]
    wanted = (first, min(first + 30, 65535))
    mine = {ports.reserve_port(wanted, tmp_path) for _ in range(4)}
    code = (
        f"from pathlib import Path; from headrace.serving.replicas.ports import reserve_port; "
        f"print(*[reserve_port({wanted!r}, Path({str(tmp_path)!r})) for _ in range(4)])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    theirs = {int(port) for port in output.split()}
    for port in mine:
        ports.release_port(port)
    assert len(mine) == len(theirs) == 4
    assert not mine & theirs


def test_used_ports_are_skipped_and_a_full_range_is_an_error(tmp_path: Path, listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    with pytest.raises(PortTaken, match=f"no free port from {port} to {port}") as caught:
        ports.reserve_port((port, port), tmp_path)
    assert "replica_ports" in (caught.value.hint or "")
    free = free_ports(1)[0]
    with pytest.raises(PortTaken):
        ports.reserve_port((free, free), tmp_path, used=[free])


def test_a_connection_to_a_server_is_found_until_it_closes(listening: socket.socket) -> None:
    port = listening.getsockname()[1]
    assert not ports.has_connections(port)
    with socket.create_connection(("127.0.0.1", port)):
        assert ports.has_connections(port)
    listening.accept()[0].close()
    assert not ports.has_connections(port)

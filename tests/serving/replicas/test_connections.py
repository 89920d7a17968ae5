"""Open connections of a server, by the port or the Unix socket that it listens on."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from headrace.runtime.unix_socket import bind
from headrace.serving.local_http import Address
from headrace.serving.replicas.connections import has_connections


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_a_connection_to_a_server_is_found_until_it_closes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "sockets" / "a server.sock"
    with socket.create_server(("127.0.0.1", 0)) if kind == "port" else bind(path) as server:
        server.listen()
        address: Address = server.getsockname() if kind == "port" else path
        assert not has_connections(address, os.getpid())
        with socket.socket(server.family) as client:
            client.connect(server.getsockname())
            assert has_connections(address, os.getpid())
            assert not has_connections(tmp_path / "other.sock", os.getpid())
        server.accept()[0].close()
        assert not has_connections(address, os.getpid())
    assert not has_connections(path, None)

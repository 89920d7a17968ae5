"""What the tests of this folder share: free ports, and the command of a small real replica."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from headrace.rollout.processes import Argv
from headrace.rollout.replicas import ReplicaSpec

ECHO = Path(__file__).parent / "echo_replica.py"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def echo_command(spec: ReplicaSpec, host: str, port: int) -> Argv:
    """The bento tag says how the echo server behaves: `never`, `crash`, `wrong`, or anything else for a good one."""
    version = "0" if spec.bento_tag == "wrong" else spec.version
    return [sys.executable, str(ECHO), spec.model, version, str(port), spec.bento_tag], {}

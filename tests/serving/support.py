"""What the tests of this folder share: the command of a small real replica."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.serving.replicas.process_runner import Argv
from headrace.serving.replicas.replica import ReplicaSpec

ECHO = Path(__file__).parent / "echo_replica.py"
MOODY = Path(__file__).parent / "moody_replica.py"


def echo_command(spec: ReplicaSpec, host: str, port: int) -> Argv:
    """The bento tag says how the echo server behaves: `never`, `crash`, `wrong`, or anything else for a good one."""
    version = "0" if spec.bento_tag == "wrong" else spec.version
    return [sys.executable, str(ECHO), spec.model, version, str(port), spec.bento_tag], {}


def moody_command(spec: ReplicaSpec, host: str, port: int) -> Argv:
    """The bento tag says in what mood the server is."""
    return [sys.executable, str(MOODY), spec.model, spec.version, str(port), spec.bento_tag], {}

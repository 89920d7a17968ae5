"""Commands that start small real replicas in place of a bento."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.serving.replicas.process_runner import Argv
from headrace.serving.replicas.replica import ReplicaSpec

ECHO = Path(__file__).parent / "echo_replica.py"
MISBEHAVING = Path(__file__).parent / "misbehaving_replica.py"


def echo_command(spec: ReplicaSpec, socket: Path) -> Argv:
    """The bento tag selects the behaviour of the echo server: `never`, `crash`, `wrong`, or anything else for a good one."""
    version = "0" if spec.bento_tag == "wrong" else spec.version
    return [sys.executable, str(ECHO), spec.model, version, str(socket), spec.bento_tag], {}


def misbehaving_command(spec: ReplicaSpec, socket: Path) -> Argv:
    """The bento tag selects the fault of the server; `good` has none."""
    return [sys.executable, str(MISBEHAVING), spec.model, spec.version, str(socket), spec.bento_tag], {}

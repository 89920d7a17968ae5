"""Serves a built bento as the product does, on a free port of loopback, for as long as a test needs it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from bentos.models.onnx_model import OnnxModel
from bentos.protocols.v1 import predict_instances, to_instances
from headrace.project import Project
from headrace.runtime.http import parse_json
from headrace.serving.packaging import Bento, serve_command
from tests.ports import free_port


class Served(NamedTuple):
    """A server that a test started."""

    url: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path


def predict_body(model: OnnxModel, body: bytes) -> list[dict[str, Any]]:
    """What a replica does with the body of a prediction, without a server around it."""
    return predict_instances(model, to_instances(parse_json(body)))


def make_project(root: Path) -> Project:
    (root / "recipes").mkdir(parents=True)
    (root / "dvc.yaml").touch()
    return Project(root)


def wait_ready(url: str, seconds: float = 120, alive: subprocess.Popen[bytes] | None = None, client: Any = httpx) -> None:
    """Until `url`/readyz gives 200; fails when it does not within `seconds`, or when the process `alive` ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert alive is None or alive.poll() is None, "the server ended before it was ready"
        try:
            if client.get(f"{url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"{url} is not ready after {seconds} s")


@contextmanager
def serve(project: Project, bento: Bento, wait: bool = True, **variables: str) -> Iterator[Served]:
    """A server of `bento`; `variables` are added to its environment."""
    port = free_port()
    argv, env = serve_command(project, bento.tag, ("127.0.0.1", port), 1)
    log = project.root / f"serve-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env={**os.environ, **env, **variables}, stdout=output, stderr=output, cwd="/")
    try:
        served = Served(f"http://127.0.0.1:{port}", port, process, log)
        if wait:
            wait_ready(served.url, alive=process)
        yield served
    finally:
        process.kill()
        process.wait(10)

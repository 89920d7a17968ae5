"""A replica that hangs is not ready, and ends without help: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from bentos.scheduling.watchdog import EXIT_CODE
from tests.asgi import wait_ready
from tests.paths import ROOT
from tests.ports import free_port
from tests.tiny_models import image_model

IMAGE = {"pixels": [[255] * 4, [255] * 4, [0] * 4, [0] * 4]}


@contextmanager
def replica(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Counts as stuck after half a second."""
    port = free_port()
    program = Path(__file__).with_name("hanging_replica.py")
    process = subprocess.Popen(
        [sys.executable, str(program), str(image_model(folder)), str(port)],
        env={**os.environ, "HEADRACE_STUCK_SECONDS": "0.5", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, alive=None)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def hang(url: str, where: str) -> threading.Thread:
    def ask() -> None:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/hang/{where}", timeout=30)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_a_model_that_hangs_makes_the_replica_unready_and_then_ends_it(tmp_path: Path) -> None:
    with replica(tmp_path) as (url, process):
        asking = hang(url, "model")
        end = time.monotonic() + 20
        while (status := httpx.get(f"{url}/readyz").status_code) == 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert status == 503
        small = httpx.post(f"{url}/v1/models/halves/predict", json=IMAGE)
        assert small.status_code == 200  # what can be answered is, until the end
        assert process.wait(20) == EXIT_CODE
        assert process.stderr is not None
        assert "the model has made no progress" in (said := process.stderr.read())
        assert "_sleep" in said  # where it hangs
        asking.join(20)


def test_an_event_loop_that_hangs_ends_the_replica(tmp_path: Path) -> None:
    with replica(tmp_path) as (url, process):
        asking = hang(url, "loop")
        assert process.wait(20) == EXIT_CODE
        asking.join(20)


def test_long_work_that_makes_progress_is_not_ended(tmp_path: Path) -> None:
    with replica(tmp_path) as (url, process):
        assert [httpx.get(url + path).status_code for path in ("/readyz", "/livez", "/healthz")] == [200] * 3
        assert httpx.get(f"{url}/hang/slow", timeout=30).status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert process.poll() is None

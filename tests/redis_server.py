"""A real Redis server on a free port."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import redis

from tests.ports import free_port


class RedisServer:
    """Can be stopped and started again, without its data."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.port = free_port()
        self.host = host
        self.address = f"redis://{host}:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("no redis-server here (apt install redis-server)")
        self._process = subprocess.Popen(
            [
                *(program, "--port", str(self.port), "--bind", self.host, "--protected-mode", "no"),
                *("--save", "", "--dir", str(self._folder)),
            ],
            stdout=subprocess.DEVNULL,
        )
        client = redis.Redis(self.host, self.port)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.02)
        client.close()
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

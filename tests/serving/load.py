"""A steady load on the gateway that counts answers: fast and slow keep-alive clients, and clients that reconnect every time."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from typing import Any

PAUSE_SECONDS = 0.02
"""Between two requests of a client that calls a real model."""


class Load:
    """Threads that call one model until the block ends; `answers` counts versions, `failures` lists errors."""

    def __init__(
        self,
        port: int,
        model: str,
        fast: int = 4,
        slow: int = 3,
        fresh: int = 2,
        instance: dict[str, Any] | None = None,
        token: str | None = None,
    ) -> None:
        """`instance` is what clients send; without it, slow clients make the echo replica wait."""
        self._authorization = {"authorization": f"Bearer {token}"} if token else {}
        self._instance = instance
        self.pause_seconds = PAUSE_SECONDS
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        clients = [(fast, 0.0, True), (slow, 0.3, True), (fresh, 0.0, False)]
        self._threads = [
            threading.Thread(target=self._client, args=(port, model, wait, keep), daemon=True)
            for count, wait, keep in clients
            for _ in range(count)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def wait_for(self, version: str, count: int = 20, seconds: float = 120.0) -> None:
        """Returns once `count` more answers came from `version`."""
        goal, deadline = self.answers[version] + count, time.monotonic() + seconds
        while self.answers[version] < goal:
            assert time.monotonic() < deadline, f"no answer from version {version}: {self.answers}, {self.failures[:3]}"
            time.sleep(0.01)

    def _client(self, port: int, model: str, wait: float, keep: bool) -> None:
        body = json.dumps({"instances": [self._instance or {"wait": wait}]}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        while not self._stopped.is_set():
            try:
                headers = {**self._authorization, "content-type": "application/json"} | (
                    {} if keep else {"connection": "close"}
                )
                connection.putrequest("POST", f"/v1/models/{model}/predict")
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    connection.putheader(name, value)
                connection.endheaders(body[:10])
                time.sleep(wait if self._instance else 0.0)  # a slow client is still sending while replicas are replaced
                connection.send(body[10:])
                response = connection.getresponse()
                raw = response.read()
                self._count(response.status, raw)
            except (OSError, http.client.HTTPException) as error:
                self._fail(f"{type(error).__name__}: {error}")
                connection.close()
            time.sleep(self.pause_seconds if self._instance else 0.002)  # limited: tests share the machine

    def _count(self, status: int, raw: bytes) -> None:
        if status != 200:
            self._fail(f"{status}: {raw[:200]!r}")
            return
        with self._lock:
            self.answers[json.loads(raw)["version"]] += 1

    def _fail(self, error: str) -> None:
        with self._lock:
            self.failures.append(error)

"""Logs one JSON line for each request that was refused, failed or slow: caller, route and duration, never its content.

`HEADRACE_LOG=requests` logs every request. Otherwise the number of lines per second is limited.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

import msgspec

from headrace.runtime.http_messages import TrackedRequest

LINES_PER_SECOND = 100
"""Further requests of a second are counted, and the next line has their number as `left_out`."""


class RequestLog:
    """Writes lines to `out`, by default standard error."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self.logs_all = os.environ.get("HEADRACE_LOG") == "requests"
        self.slow_seconds = float(os.environ.get("HEADRACE_SLOW_SECONDS", 1.0))
        self._replica = os.environ.get("HEADRACE_REPLICA", "")
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def is_logged(self, status: int, seconds: float) -> bool:
        return status >= 400 or seconds >= self.slow_seconds or self.logs_all

    def write(self, request: TrackedRequest, model: str, version: str, status: int, seconds: float) -> None:
        now = time.time()
        if not self._is_within_limit(int(now)):
            self._left_out += 1
            return
        fields: dict[str, str | int | float] = {
            "at": round(now, 3),
            "log": "request",
            "request_id": request.request_id,
            "tenant": request.tenant,
            "model": model,
            "version": version,
            "replica": self._replica,
            "route": request.route,
            "status": status,
            "code": request.code,
            "seconds": round(seconds, 6),
        }
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        print(msgspec.json.encode(fields).decode(), file=self._out or sys.stderr, flush=True)

    def _is_within_limit(self, second: int) -> bool:
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self.logs_all or self._lines <= LINES_PER_SECOND

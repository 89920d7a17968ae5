"""One JSON line for each request that was refused, failed or slow: who, what, how long, and never what was asked.

`HEADRACE_LOG=requests` has a line for each request. A flood does not become a flood of lines.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

import msgspec

from headrace.runtime.http_call import Call

LINES_A_SECOND = 100
"""More are counted, and the number is told with the next line."""


class RequestLog:
    """Writes lines to `out`, which is where the process logs."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self.has_all = os.environ.get("HEADRACE_LOG") == "requests"
        self.slow_seconds = float(os.environ.get("HEADRACE_SLOW_SECONDS", 1.0))
        self._replica = os.environ.get("HEADRACE_REPLICA", "")
        self._second = 0
        self._lines = 0
        self._left_out = 0

    def wants(self, status: int, seconds: float) -> bool:
        return status >= 400 or seconds >= self.slow_seconds or self.has_all

    def write(self, call: Call, model: str, version: str, status: int, seconds: float) -> None:
        now = time.time()
        if not self._has_room(int(now)):
            self._left_out += 1
            return
        fields: dict[str, str | int | float] = {
            "at": round(now, 3),
            "log": "request",
            "request_id": call.request_id,
            "tenant": call.tenant,
            "model": model,
            "version": version,
            "replica": self._replica,
            "route": call.route,
            "status": status,
            "code": call.code,
            "seconds": round(seconds, 6),
        }
        if self._left_out:
            fields["left_out"], self._left_out = self._left_out, 0
        print(msgspec.json.encode(fields).decode(), file=self._out or sys.stderr, flush=True)

    def _has_room(self, second: int) -> bool:
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self.has_all or self._lines <= LINES_A_SECOND

"""Generates load with wrk and measures a server: requests per second, latencies, CPU time per request."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_systems import RunningServer
from headrace.errors import HeadraceError

SCRIPT = """
wrk.method = "POST"
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("RESULT %d %d %f %f %f %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), latency.max, e.status, e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True)
class LoadResult:
    """Measurements of one server with one number of connections."""

    connections: int
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_ms: float
    """CPU time of the server's processes per request."""
    rss_mb: float
    """Resident memory after the load."""


def median_round(rounds: Iterable[LoadResult]) -> LoadResult:
    """Returns the round with the median requests per second."""
    ordered = sorted(rounds, key=lambda one: one.requests_per_second)
    return ordered[(len(ordered) - 1) // 2]


def require_wrk() -> str:
    """Returns the path of wrk.

    Raises:
        HeadraceError: wrk is not installed.
    """
    program = shutil.which("wrk")
    if program is None:
        raise HeadraceError("wrk, which generates the load, is not installed", hint="apt install wrk")
    return program


def load(running: RunningServer, connections: int, seconds: float, scratch: Path) -> LoadResult:
    """Sends the same request over all connections, again as soon as it is answered."""
    body, script = scratch / "body.bin", scratch / "load.lua"
    body.write_bytes(running.request.body)
    headers = "\n".join(
        f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in running.request.headers.items()
    )
    script.write_text(SCRIPT.format(body=body, headers=headers), encoding="utf-8")
    cpu = running.cpu_seconds()
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    done = subprocess.run(
        [*command, "-s", str(script), running.url + running.request.path], capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise HeadraceError(f"wrk failed: {done.stderr.strip()[-300:]}", where=running.url, hint="read the server's log")
    requests, micros, p50, p99, _, refused, broken = (float(word) for word in line.split()[1:])
    return LoadResult(
        connections=connections,
        requests=int(requests),
        requests_per_second=requests / (micros / 1e6),
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        failed=int(refused + broken),
        cpu_ms=1e3 * (running.cpu_seconds() - cpu) / max(1.0, requests),
        rss_mb=running.rss() / 1e6,
    )

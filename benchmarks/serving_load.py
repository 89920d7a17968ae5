"""Load from wrk, and what a server did under it: requests a second, latencies, CPU a request."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving_systems import Running
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
class Found:
    """What one server did with so many connections."""

    connections: int
    requests: int
    requests_a_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    cpu_ms: float
    """Of the server's processes, a request."""
    rss_mb: float
    """After it."""


def median_round(rounds: Iterable[Found]) -> Found:
    """The one that did the median of requests a second."""
    ordered = sorted(rounds, key=lambda one: one.requests_a_second)
    return ordered[(len(ordered) - 1) // 2]


def require_wrk() -> str:
    """The program.

    Raises:
        HeadraceError: it is not there.
    """
    program = shutil.which("wrk")
    if program is None:
        raise HeadraceError("wrk, which makes the load, is not installed", hint="apt install wrk")
    return program


def load(running: Running, connections: int, seconds: float, scratch: Path) -> Found:
    """Sends the same request over so many connections, each as soon as it has its answer."""
    body, script = scratch / "body.bin", scratch / "load.lua"
    body.write_bytes(running.ask.body)
    headers = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in running.ask.headers.items())
    script.write_text(SCRIPT.format(body=body, headers=headers), encoding="utf-8")
    cpu = running.cpu_seconds()
    command = [require_wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    done = subprocess.run(
        [*command, "-s", str(script), running.url + running.ask.path], capture_output=True, text=True, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        raise HeadraceError(f"wrk failed: {done.stderr.strip()[-300:]}", where=running.url, hint="read the server's log")
    requests, micros, p50, p99, _, refused, broken = (float(word) for word in line.split()[1:])
    return Found(
        connections=connections,
        requests=int(requests),
        requests_a_second=requests / (micros / 1e6),
        p50_ms=p50 / 1e3,
        p99_ms=p99 / 1e3,
        failed=int(refused + broken),
        cpu_ms=1e3 * (running.cpu_seconds() - cpu) / max(1.0, requests),
        rss_mb=running.rss() / 1e6,
    )

"""Prometheus metrics of one replica. Labels come from fixed sets, never from a request's path: memory stays bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What one replica counts, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "headrace_requests", "Requests by status", ["model", "version", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "headrace_request_seconds",
            "Seconds from headers to answer",
            ["model", "version"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._rows = Counter("headrace_predictions", "Rows predicted", ["model", "version"], registry=self.registry)
        self.in_flight = Gauge("headrace_requests_in_flight", "Requests under way", registry=self.registry)
        self._by_status: dict[int, Counter] = {}
        self.name_model("none", "0")

    def name_model(self, model: str, version: str) -> None:
        """Labels whatever is counted from now on."""
        self._labels = (model, version)
        self._by_status = {}
        self._seconds_child = self._seconds.labels(*self._labels)
        self._rows_child = self._rows.labels(*self._labels)

    def count_rows(self, rows: int) -> None:
        self._rows_child.inc(rows)

    def count(self, status: int, seconds: float) -> None:
        """One answered request. Children are kept, since looking them up by label costs more than counting."""
        child = self._by_status.get(status)
        if child is None:
            child = self._by_status[status] = self._requests.labels(*self._labels, str(status))
        child.inc()
        self._seconds_child.observe(seconds)

    def render(self) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

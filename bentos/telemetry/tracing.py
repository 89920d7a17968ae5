"""OpenTelemetry traces: one span for each sampled request, as a child of the client's span, if an endpoint is set.

`OTEL_EXPORTER_OTLP_ENDPOINT` turns it on; `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`, `OTEL_SERVICE_NAME` and
`OTEL_RESOURCE_ATTRIBUTES` are read by OpenTelemetry itself. Without an endpoint, OpenTelemetry is not imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Protocol


class Trace(Protocol):
    """Exports finished requests."""

    def span(self, headers: Mapping[bytes, bytes], seconds: float, route: str, status: int, attributes: dict[str, Any]) -> None:
        """Exports the span of a request that ended now and took `seconds`."""
        ...

    def close(self) -> None:
        """Sends spans that are still buffered."""
        ...


def open_trace() -> Trace | None:
    """Returns the exporter, or None if no endpoint is set."""
    if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
        return None
    return _OpenTelemetry()


class _OpenTelemetry:
    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "headrace"),
            "service.instance.id": os.environ.get("HEADRACE_REPLICA", ""),
        }
        self._provider = TracerProvider(resource=Resource.create(resource))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("headrace")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)

    def span(self, headers: Mapping[bytes, bytes], seconds: float, route: str, status: int, attributes: dict[str, Any]) -> None:
        carrier = {
            name: headers[name.encode()].decode("latin-1") for name in ("traceparent", "tracestate") if name.encode() in headers
        }
        end = time.time_ns()
        span = self._tracer.start_span(
            route, self._propagator.extract(carrier), self._kind, start_time=end - int(seconds * 1e9)
        )
        if span.is_recording():
            span.set_attributes({"http.route": route, "http.response.status_code": status, **attributes})
            if status >= 500:
                span.set_status(self._failed)
        span.end(end)

    def close(self) -> None:
        self._provider.shutdown()

"""Traces for OpenTelemetry, where `--traces` asks for them: every request, and what its time went into.

An image is in `queue` until a process may decode it, in `decode` until it has pixels, in `batch` until its pass begins,
then in `source`, which all images of the pass share, and in `tasks`. The extra `traces` is imported here alone.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torchsnow.errors import ServingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span, Tracer

_FLUSH_S = 2.0  # for what is not yet sent, when the server ends
_PACKAGES = ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""That of the request that is worked on."""


class Trace:
    """The span of one request."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span

    @property
    def id(self) -> str:
        """In hex, as collectors show it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def stage(self, name: str, start_ns: int, end_ns: int) -> None:
        """Note a part of the request's time."""
        from opentelemetry.trace import set_span_in_context

        within = set_span_in_context(self._span)
        self._tracer.start_span(name, within, start_time=start_ns).end(end_ns)

    def end(self, method: str, route: str, status: int, tasks: Sequence[str], request_id: str) -> None:
        """Note what became of the request."""
        method = method if method in _METHODS else "_OTHER"  # or else clients would make up names of spans
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "torchsnow.tasks": list(tasks),
                "torchsnow.request": request_id,
            }
        )
        self._span.end()


class Stages:
    """The stages of one image, each from the end of the one before."""

    def __init__(self) -> None:
        self._trace, self._since_ns = current.get(), time.time_ns()

    def end(self, name: str, end_ns: int | None = None) -> None:
        """One is over, now or at that time."""
        if self._trace is None:
            return
        end_ns = time.time_ns() if end_ns is None else end_ns
        self._trace.stage(name, self._since_ns, end_ns)
        self._since_ns = end_ns


class Tracing:
    """Sends spans, by default to the collector that the standard OTEL_EXPORTER_OTLP_ENDPOINT names."""

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        try:
            self._start(processor)
        except Exception as error:  # it raises what it likes for variables that make no sense
            raise ServingError(f"traces cannot be sent: {error}; check the variables OTEL_...") from error

    def _start(self, processor: SpanProcessor | None) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "torchsnow"}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("torchsnow")

    def begin(self, headers: Mapping[str, str]) -> Trace:
        """The trace of a request, part of the client's own if its `traceparent` says so."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Without `tracestate`, of which the library would write into the log whatever a client made up.
        given = {"traceparent": headers.get("traceparent", "")[:64]}
        around = TraceContextTextMapPropagator().extract(given)
        trace = Trace(self._tracer, self._tracer.start_span("request", around, SpanKind.SERVER))
        current.set(trace)
        return trace

    async def close(self) -> None:
        """Send what is left, as far as the collector takes it soon."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _FLUSH_S)


def refuse_without_traces() -> None:
    """Raise ServingError unless what traces need is installed."""
    try:
        found = [importlib.util.find_spec(package) for package in _PACKAGES]
    except ModuleNotFoundError:  # of what should hold it
        found = [None]
    if None in found:
        raise ServingError("--traces needs OpenTelemetry: pip install 'torchsnow[traces]'")

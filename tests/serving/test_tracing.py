"""What a collector is told of a request."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from running_server import Running, picture, running

from torchsnow.errors import ServingError
from torchsnow.hub import Hub
from torchsnow.hub.live import LiveHub
from torchsnow.serving import tracing as module
from torchsnow.serving.tracing import Tracing, refuse_without_traces

export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Any]]:
    kept = memory.InMemorySpanExporter()
    made = Tracing.__init__
    monkeypatch.setattr(Tracing, "__init__", lambda self: made(self, export.SimpleSpanProcessor(kept)))
    with running(LiveHub(hub), traces=True, decode_processes=1) as server:
        yield server, kept


def test_a_request_is_traced_stage_by_stage(traced: tuple[Running, Any], caplog: pytest.LogCaptureFixture) -> None:
    server, kept = traced
    reply = server.predict([picture()], ["a", "b"], traceparent=PARENT, **{"x-request-id": "mine"})
    assert reply.status == 200
    server.wait_until(lambda: any(span.name == "POST /predict" for span in kept.get_finished_spans()))
    *stages, request = kept.get_finished_spans()
    assert [span.name for span in stages] == ["queue", "decode", "batch", "source", "tasks"]
    assert f"{request.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert dict(request.attributes) == {
        "http.request.method": "POST",
        "http.route": "/predict",
        "http.response.status_code": 200,
        "torchsnow.tasks": ("a", "b"),
        "torchsnow.request": "mine",
    }
    for before, after in pairwise(stages):
        assert before.parent.span_id == request.context.span_id
        assert before.start_time <= before.end_time == after.start_time <= after.end_time
    assert request.start_time <= stages[0].start_time
    assert stages[-1].end_time <= request.end_time
    assert request.resource.attributes["service.name"] == "torchsnow"


def test_what_is_refused_is_traced_too(traced: tuple[Running, Any]) -> None:
    server, kept = traced
    assert server.call("BREW", "/nothing", None, {"traceparent": "nonsense"}).status == 404
    server.wait_until(kept.get_finished_spans)
    (span,) = kept.get_finished_spans()
    assert (span.name, span.attributes["http.response.status_code"], span.parent) == ("_OTHER none", 404, None)


def test_headers_of_a_client_are_not_written_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    tracing = Tracing(export.SimpleSpanProcessor(memory.InMemorySpanExporter()))
    for parent in (PARENT, "00-0-0-0" * 1000, "x"):
        tracing.begin({"traceparent": parent, "tracestate": f"a=b{' ' * 8000}c, forged"})
    assert caplog.records == []


def test_variables_that_make_no_sense_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-3")
    with pytest.raises(ServingError, match=r"traces cannot be sent: .*; check the variables OTEL_"):
        Tracing()


def test_traces_need_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_without_traces()
    monkeypatch.setattr(module, "_PACKAGES", ("opentelemetry", "no_such_package.at_all"))
    with pytest.raises(ServingError, match=r"pip install 'torchsnow\[traces\]'"):
        refuse_without_traces()

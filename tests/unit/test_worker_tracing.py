"""What a worker tells Triton about traces, and the span of a computation."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest

from fakes.collector import Collector
from proa.errors import SettingsError
from proa.telemetry import current, new_context, to_metadata
from proa.worker.spans import compute_span, open_compute
from proa.worker.tracing import OFF, export_of

HTTP = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/"}
GRPC = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
}


def test_triton_is_told_the_collector_s_address():
    export = export_of(None, HTTP)
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in export.options()
    assert "--trace-config=opentelemetry,resource=service.name=proa-worker" in export.options()
    assert "--trace-config=rate=0" in export.options()  # only what carries a traceparent


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b,service.name=theirs"}, "theirs"),
    ],
)
def test_the_service_s_name_is_that_of_the_stub(more, name):
    assert export_of(None, HTTP | more).service == name


@pytest.mark.parametrize("environ", [{}, HTTP | {"OTEL_SDK_DISABLED": "true"}])
def test_off(environ):
    assert export_of("http://other:4318", environ) is None
    assert open_compute(HTTP | OFF) is None


def test_a_collector_for_grpc_needs_an_address_for_triton(caplog):
    with caplog.at_level(logging.WARNING):
        assert export_of(None, GRPC) is None
    assert "PROA_WORKER_TRACE_URL" in caplog.text
    assert export_of("http://collector:4318", GRPC).endpoint == "http://collector:4318"


@pytest.mark.parametrize("url", ["collector:4318", "http://", "http://me:secret@collector:4318"])
def test_an_address_that_is_none(url):
    with pytest.raises(SettingsError, match="PROA_WORKER_TRACE_URL") as bad:
        export_of(url, GRPC)
    assert "secret" not in str(bad.value)
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        export_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": url})


def request_of(context):
    """What Triton's Python backend hands to model.py."""
    found = json.dumps(dict(to_metadata(context))) if context else None
    return SimpleNamespace(trace=lambda: SimpleNamespace(get_context=lambda: found))


def test_a_computation_has_a_span_where_its_request_has_one():
    triton = new_context(sampled=True)
    with Collector() as collector:
        tracing = open_compute(export_of(collector.http_endpoint, GRPC).environment())
        with compute_span(tracing, request_of(None), "deployed", 1):
            assert current.get() is None
        with compute_span(tracing, request_of(triton), "parity.0", 4):
            pass
        with (
            pytest.raises(ValueError, match="broken"),
            compute_span(tracing, request_of(triton), "deployed", 1),
        ):
            raise ValueError("broken")
        tracing.close()
    fine, failed = collector.spans
    assert (fine.name, fine.service) == ("proa.compute", "proa-worker")
    assert (fine.trace_id, fine.parent_id) == (triton.trace_hex, triton.span_hex)
    assert (fine.attributes["proa.program"], fine.attributes["proa.batch"]) == ("parity.0", 4)
    assert (failed.status, fine.status) == ("ERROR", "UNSET")


def test_without_tracing_the_request_is_not_asked():
    with compute_span(None, None, "deployed", 1):
        pass

"""What Triton is told about traces: where its spans go.

Triton and its stub (`spans`) export by themselves, over HTTP: Triton knows no other protocol. What
carries no traceparent is not traced.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from proa.runtime.settings import from_env
from proa.runtime.tracing import HTTP, TracingSettings, endpoint_of, pairs_of
from proa.worker.spans import TRACE_URL

log = logging.getLogger(__name__)

# Triton's default is 5 s: `proa trace` shows requests while they are news.
DELAY_MS = 1_000
# Of one export. Triton sends what it has before it ends, in four batches at most, and a collector
# that takes connections but never answers must not hold up the end.
TIMEOUT_S = "1"
OFF = {TRACE_URL: ""}  # environment of a Triton without traces


@dataclass(frozen=True)
class Export:
    """Where a worker's spans go: the base URL of a collector (OTLP over HTTP), and as whose."""

    endpoint: str
    service: str

    def options(self) -> tuple[str, ...]:
        """Options of tritonserver. rate 0: requests that carry a traceparent, and no others."""
        own = {
            "url": f"{self.endpoint.rstrip('/')}/v1/traces",
            "resource": f"service.name={self.service}",
            "bsp_schedule_delay": DELAY_MS,
        }
        return (
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=0",
            *(f"--trace-config=opentelemetry,{name}={value}" for name, value in own.items()),
        )

    def environment(self) -> dict[str, str]:
        """Of tritonserver and of its stubs."""
        return {TRACE_URL: self.endpoint, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": TIMEOUT_S}


def export_of(trace_url: str | None, environ: Mapping[str, str]) -> Export | None:
    """Where the spans of this worker go; None: nowhere.

    trace_url: PROA_WORKER_TRACE_URL, needed where the other services speak gRPC to the collector;
    without it, such a worker warns, and serves untraced. Errors: SettingsError.
    """
    settings = from_env(TracingSettings, environ)
    if settings.endpoint is None or settings.disabled:
        return None
    attributes = pairs_of("OTEL_RESOURCE_ATTRIBUTES", settings.attributes)
    pairs_of("OTEL_EXPORTER_OTLP_HEADERS", settings.headers)
    service = settings.name or attributes.get("service.name") or "proa-worker"
    if trace_url is not None:
        return Export(endpoint_of(TRACE_URL, trace_url), service)
    if settings.protocol != HTTP:
        log.warning(
            "no traces of this worker: OTEL_EXPORTER_OTLP_PROTOCOL=%s, and Triton exports over"
            " HTTP only; name the collector's HTTP address in PROA_WORKER_TRACE_URL",
            settings.protocol,
        )
        return None
    return Export(endpoint_of("OTEL_EXPORTER_OTLP_ENDPOINT", settings.endpoint), service)

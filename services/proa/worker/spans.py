"""The span of a computation, made in Triton's stub and exported from there.

A stub without traces, as most are, imports nothing that exports: `open_compute` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from proa.telemetry import TraceContext, Tracing, current, parse

TRACE_URL = "PROA_WORKER_TRACE_URL"


def open_compute(environ: Mapping[str, str]) -> Tracing | None:
    """The tracing of a stub, None if it is off; it has the environment of Triton."""
    endpoint = environ.get(TRACE_URL)
    if not endpoint:
        return None
    from proa.runtime.tracing import HTTP, open_tracing

    over_http = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": HTTP}
    return open_tracing("worker", {**environ, **over_http}, None)


@contextmanager
def compute_span(tracing: Tracing | None, request: Any, program: str, batch: int) -> Iterator[None]:
    """`proa.compute` around what happens inside, below Triton's span of `request`, if it has one.

    request: an InferenceRequest of Triton's Python backend.
    """
    parent = _context(request) if tracing is not None else None
    if parent is None:
        yield
        return
    from proa.runtime.tracing import step

    token = current.set(parent)
    try:
        with step(tracing, "proa.compute") as record:
            if record is not None:
                record.attributes |= {"proa.program": program, "proa.batch": batch}
            yield
    finally:
        current.reset(token)


def _context(request: Any) -> TraceContext | None:
    """Triton's span of the computation of `request`."""
    found = request.trace().get_context()  # a JSON object of headers, or None
    return parse(json.loads(found).items()) if found else None

"""A span for each inference that a client asks for, in programs that use OpenTelemetry.

The program configures OpenTelemetry, as any does that wants traces; one that never imported it has
no spans, and no import of it comes from here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from proa.errors import ProaError
from proa.telemetry import TraceContext, to_metadata

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_SERVICE = "inference.GRPCInferenceService"
_API = "opentelemetry.trace"

Headers = tuple[tuple[str, str], ...]


class CallSpan:
    """The span of one call, or of none. metadata: what the call carries to be its child."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span
        self.metadata: Headers = ()
        found = span.get_span_context() if span is not None else None
        if found is not None and found.is_valid:
            state = found.trace_state.to_header() if found.trace_state else ""
            self.metadata = to_metadata(
                TraceContext(found.trace_id, found.span_id, found.trace_flags.sampled, state)
            )

    def answered(self, source: str) -> None:
        """The call has an answer, from `source`."""
        if self._span is not None and source:
            self._span.set_attribute("proa.source", source)


_NONE = CallSpan()


class Spans:
    """The spans of one client of the server at `address` (host:port). Any thread may use it."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._tracer: Tracer | None = None

    @contextmanager
    def of(self, method: str, model: str) -> Iterator[CallSpan]:
        """A CLIENT span around what happens inside, a child of the program's current one."""
        api = sys.modules.get(_API)
        if api is None:
            yield _NONE
            return
        name = f"{_SERVICE}/{method}"
        span = self._start(api, name, model)
        code = "OK"
        try:
            with api.use_span(span, record_exception=False, set_status_on_exception=False):
                yield CallSpan(span)
        except BaseException as exc:
            code = exc.status if isinstance(exc, ProaError) else "CANCELLED"
            kind = code if isinstance(exc, ProaError) else type(exc).__name__
            span.set_attribute("error.type", kind)
            span.set_status(api.StatusCode.ERROR, str(exc) or kind)
            raise
        finally:
            span.set_attribute("rpc.response.status_code", code)
            span.end()

    def _start(self, api: Any, name: str, model: str) -> Span:
        if self._tracer is None:  # one that was got before there is a provider uses it all the same
            self._tracer = api.get_tracer("proa.client")
        attributes: dict[str, str | int] = {
            "rpc.system.name": "grpc",
            "rpc.method": name,
            "server.address": self._host,
            "server.port": int(self._port),
            "proa.model": model,
        }
        return self._tracer.start_span(name, kind=api.SpanKind.CLIENT, attributes=attributes)

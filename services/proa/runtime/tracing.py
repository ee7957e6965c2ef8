"""Tracing of a service: settings, the Prometheus counter, SERVER spans of calls, steps in them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from proa.errors import SettingsError
from proa.rpc import Context
from proa.runtime.interceptor import Handler, UnaryInterceptor
from proa.runtime.settings import from_env, setting
from proa.telemetry import Kind, SpanRecord, TraceContext, Tracing, child_of, current, parse
from proa.telemetry.spans import Value

HTTP, GRPC = "http/protobuf", "grpc"
ATTRIBUTES_MAX = 64  # of OTEL_RESOURCE_ATTRIBUTES and of headers


# Of a server's point of view: the others are the caller's doing (semantic conventions, rpc).
_ERRORS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}
_KEY = re.compile(r"[!-+\--<>-~]+")  # printable ASCII, no space, comma or equals sign


@dataclass(frozen=True)
class TracingSettings:
    """OpenTelemetry's own variables where there is one."""

    endpoint: str | None = setting(
        None, env="OTEL_EXPORTER_OTLP_ENDPOINT", why="base URL of the collector; not set: no traces"
    )
    protocol: str = setting(
        HTTP, env="OTEL_EXPORTER_OTLP_PROTOCOL", choices=(HTTP, GRPC), why="how to speak to it"
    )
    headers: str | None = setting(
        None, env="OTEL_EXPORTER_OTLP_HEADERS", why="sent with each export: key=value,key=value"
    )
    certificate: Path | None = setting(
        None, env="OTEL_EXPORTER_OTLP_CERTIFICATE", why="authorities of the collector, PEM"
    )
    attributes: str | None = setting(
        None, env="OTEL_RESOURCE_ATTRIBUTES", why="of this process: key=value,key=value"
    )
    name: str | None = setting(
        None, env="OTEL_SERVICE_NAME", why="service.name; not set: proa-<service>"
    )
    disabled: bool = setting(False, env="OTEL_SDK_DISABLED", why="no traces whatever else is set")
    sample: float = setting(
        0.01,
        env="PROA_TRACE_SAMPLE",
        minimum=0.0,
        maximum=1.0,
        why="share of the requests sampled where the caller has not decided",
    )
    slow_ms: float = setting(
        0.0,
        env="PROA_TRACE_SLOW_MS",
        unit="ms",
        minimum=0.0,
        maximum=3_600_000.0,
        why="keep the trace of a request slower than this; 0: the model's slo.latencyMs",
    )


def open_tracing(
    service: str, environ: Mapping[str, str], registry: CollectorRegistry | None
) -> Tracing | None:
    """The tracing of this process, None if it is off. `service`: as in `frontend`.

    A collector that cannot be reached is no error. `registry`: gets proa_trace_spans_total. Close
    it on a thread at the end: `await asyncio.to_thread(tracing.close)`. Errors: SettingsError.
    """
    settings = from_env(TracingSettings, environ)
    if settings.endpoint is None:
        return None
    endpoint = endpoint_of("OTEL_EXPORTER_OTLP_ENDPOINT", settings.endpoint)
    headers = pairs_of("OTEL_EXPORTER_OTLP_HEADERS", settings.headers)
    attributes = pairs_of("OTEL_RESOURCE_ATTRIBUTES", settings.attributes)
    if settings.disabled:
        return None
    # Imported here: some 100 ms and 20 MB that a process without traces does not pay.
    from proa.telemetry.otlp import OtlpExporter, Target

    try:
        if settings.certificate is not None:
            ssl.create_default_context(cafile=settings.certificate)  # raises where it is none
        exporter = OtlpExporter(
            Target(
                endpoint,
                settings.name or attributes.get("service.name") or f"proa-{service}",
                _version(),
                grpc=settings.protocol == GRPC,
                headers=headers,
                certificate=settings.certificate,
                attributes=attributes,
            )
        )
    except OSError as exc:
        raise SettingsError(f"OTEL_EXPORTER_OTLP_CERTIFICATE: {exc}") from exc
    except Exception as exc:  # the SDK reads more variables than we do, as ..._COMPRESSION
        raise SettingsError(f"OTEL_EXPORTER_OTLP_...: {exc}") from exc
    tracing = Tracing(exporter, sample=settings.sample, slow_ms=settings.slow_ms)
    if registry is not None:
        registry.register(SpanCounts(tracing))
    return tracing


@contextlib.asynccontextmanager
async def tracing_of(
    service: str, environ: Mapping[str, str], registry: CollectorRegistry
) -> AsyncIterator[Tracing | None]:
    """The tracing of this process, None if it is off; spans of the last calls are sent at the end.

    service: as in `encoder`. Errors: SettingsError.
    """
    tracing = open_tracing(service, environ, registry)
    try:
        yield tracing
    finally:
        if tracing is not None:
            await asyncio.to_thread(tracing.close)


class SpanCounts(Collector):
    """proa_trace_spans_total{outcome}, read from `tracing` when asked."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def describe(self) -> Iterable[Metric]:
        return [_family()]

    def collect(self) -> Iterable[Metric]:
        family = _family()
        family.add_metric(["exported"], self._tracing.exported)
        family.add_metric(["dropped"], self._tracing.dropped)
        return [family]


class TracingInterceptor(UnaryInterceptor):
    """A SERVER span for every unary call of one service that carries a sampled traceparent.

    `service`: full name. Handlers find the span in `proa.telemetry.current`. Put it first, so that
    what other interceptors do is inside the span.
    """

    def __init__(self, tracing: Tracing, service: str) -> None:
        super().__init__(service)
        self._tracing = tracing

    def around(self, handler: Handler, details: grpc.HandlerCallDetails) -> Handler | None:
        """See UnaryInterceptor."""
        parent = parse(details.invocation_metadata or ())
        if parent is None or not parent.sampled:
            return None
        return self._traced(handler, details.method.removeprefix("/"), parent)

    def _traced(self, handler: Handler, method: str, parent: TraceContext) -> Handler:
        async def call(request: Any, context: Context) -> Any:
            record = SpanRecord(
                method,
                child_of(parent),
                parent.span_id,
                Kind.SERVER,
                time.time_ns(),
                0,
                {"rpc.system.name": "grpc", "rpc.method": method},
            )
            token = current.set(record.context)
            code = grpc.StatusCode.CANCELLED
            try:
                reply = await handler(request, context)
            except Exception:
                code = _code(context, grpc.StatusCode.UNKNOWN)
                raise
            else:
                code = _code(context, grpc.StatusCode.OK)
                return reply
            finally:
                current.reset(token)
                _end(record, code, context)
                self._tracing.emit(record)

        return call


@contextlib.contextmanager
def step(
    tracing: Tracing | None, name: str, /, *, kind: Kind = Kind.INTERNAL, **attributes: Value
) -> Iterator[SpanRecord | None]:
    """Record what happens inside as a child of the current span, if there is one.

        with step(tracing, "proa.encode", **{"proa.k": 4}) as record:
            if record is not None:
                record.attributes["proa.rows"] = 1

    Inside, `current` is the step: a call that is made there carries `to_metadata(current.get())`.
    """
    parent = current.get()
    if tracing is None or parent is None or not parent.sampled:
        yield None
        return
    record = SpanRecord(
        name, child_of(parent), parent.span_id, kind, time.time_ns(), 0, dict(attributes)
    )
    token = current.set(record.context)
    try:
        yield record
    except BaseException as exc:
        record.error = str(exc) or type(exc).__name__
        record.attributes.setdefault("error.type", type(exc).__name__)
        raise
    finally:
        current.reset(token)
        record.end_ns = max(time.time_ns(), record.start_ns)
        tracing.emit(record)


def pairs_of(name: str, text: str | None) -> dict[str, str]:
    """`key=value,key=value` of variable `name`, values percent-decoded. Errors: SettingsError; it
    shows no value, which may be a secret."""
    pairs: dict[str, str] = {}
    for number, part in enumerate((text or "").split(","), 1):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals or not _KEY.fullmatch(key):
            raise SettingsError(f"{name}: entry {number} is not key=value")
        pairs[key] = unquote(value)
    if len(pairs) > ATTRIBUTES_MAX:
        raise SettingsError(f"{name} has {len(pairs)} entries; the limit is {ATTRIBUTES_MAX}")
    return pairs


def endpoint_of(name: str, text: str) -> str:
    """`text` of variable `name` if it is a collector's base URL. Errors: SettingsError."""
    try:
        url = urlsplit(text)
        fine = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fine = False
    if "@" in text:  # we log the endpoint, and many read the messages of errors
        raise SettingsError(f"{name} has credentials; OTEL_EXPORTER_OTLP_HEADERS is for them")
    if not fine or url.query or url.fragment:
        raise SettingsError(f"{name}={text[:200]!r} is not http://host:port or https://host:port")
    return text


def _end(record: SpanRecord, code: grpc.StatusCode, context: Context) -> None:
    record.end_ns = max(time.time_ns(), record.start_ns)
    record.attributes["rpc.response.status_code"] = code.name
    if code is not grpc.StatusCode.OK:
        record.attributes["error.type"] = code.name
    if code in _ERRORS:
        record.error = _text(context.details()) or code.name


def _code(context: Context, default: grpc.StatusCode) -> grpc.StatusCode:
    """What the handler set, as a number or not at all, as a StatusCode."""
    found: Any = context.code()
    for code in grpc.StatusCode:
        if found is code or found == code.value[0]:
            return default if code is grpc.StatusCode.OK else code
    return default


def _text(details: Any) -> str:
    return details.decode("utf-8", "replace") if isinstance(details, bytes) else str(details or "")


def _family() -> CounterMetricFamily:
    return CounterMetricFamily(
        "proa_trace_spans_total",
        "Spans exported to the collector, and dropped.",
        labels=["outcome"],
    )


def _version() -> str:
    try:
        return version("proa")
    except PackageNotFoundError:
        return "unknown"

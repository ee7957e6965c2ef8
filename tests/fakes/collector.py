"""A collector of traces: a real OTLP receiver in this process, HTTP (protobuf, JSON) and gRPC.

    with Collector() as collector:
        process = start(environ | collector.environ())
        found = await collector.wait(lambda spans: [s for s in spans if s.name == "proa.decode"])

It runs on threads of its own, so a blocked event loop does not keep it from answering.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from fakes.eventually import eventually, eventually_sync

T = TypeVar("T")
Request = trace_service_pb2.ExportTraceServiceRequest
Response = trace_service_pb2.ExportTraceServiceResponse
Value = str | int | float | bool | bytes | None


@dataclass(frozen=True)
class Link:
    trace_id: str
    span_id: str
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    time_ns: int
    name: str
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Span:
    """As it came. Ids in hex, parent_id "" for a root; kind as in SERVER; status UNSET, OK, ERROR;
    service: service.name; resource: all that was said of the process."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    links: tuple[Link, ...]
    events: tuple[Event, ...]
    service: str
    status: str
    message: str = ""
    state: str = ""
    scope: str = ""
    resource: dict[str, Value] = field(default_factory=dict)


class Collector:
    """spans: in the order they came. headers: of the last export, lower case. status: what HTTP
    exports are answered with, and gRPC ones unless it is 200 (as UNAVAILABLE). tls: a folder with
    tls.crt and tls.key."""

    def __init__(self, tls: Path | None = None) -> None:
        self.spans: list[Span] = []
        self.headers: dict[str, str] = {}
        self.status = 200
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._grpc = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Servicer(self), self._grpc)
        scheme = "https" if tls else "http"
        self.http_endpoint = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"
        self.grpc_endpoint = f"{scheme}://127.0.0.1:{self._listen(tls)}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._grpc.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._grpc.stop(0).wait()

    def _listen(self, tls: Path | None) -> int:
        """The gRPC port; with `tls`, HTTP speaks TLS too."""
        if tls is None:
            return self._grpc.add_insecure_port("127.0.0.1:0")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls / "tls.crt", tls / "tls.key")
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        pair = (tls / "tls.key").read_bytes(), (tls / "tls.crt").read_bytes()
        return self._grpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))

    def environ(self, protocol: str = "http/protobuf", sample: float = 1.0) -> dict[str, str]:
        """What sends a process's traces here."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": (
                self.grpc_endpoint if protocol == "grpc" else self.http_endpoint
            ),
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "PROA_TRACE_SAMPLE": str(sample),
        }

    def named(self, name: str) -> list[Span]:
        """The spans of that name so far."""
        return [span for span in list(self.spans) if span.name == name]

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of that trace so far, by start."""
        found = [span for span in list(self.spans) if span.trace_id == trace_id]
        return sorted(found, key=lambda span: span.start_ns)

    async def wait(self, predicate: Callable[[list[Span]], T], *, timeout_s: float = 30.0) -> T:
        """What `predicate(spans)` says once it is true. Fails after `timeout_s` seconds."""
        asked = _Asked(self, predicate)
        await eventually(asked, timeout_s=timeout_s)
        return asked.found

    def wait_sync(self, predicate: Callable[[list[Span]], T], *, timeout_s: float = 30.0) -> T:
        """The same for synchronous tests."""
        asked = _Asked(self, predicate)
        eventually_sync(asked, timeout_s=timeout_s)
        return asked.found

    def take(self, request: Request, headers: Iterable[tuple[str, Any]]) -> None:
        """Keep the spans of one export."""
        self.headers = {str(key).lower(): str(value) for key, value in headers}
        self.spans += spans_of(request)


class _Asked(Generic[T]):
    """A predicate, its last answer, and what to say where it never was true."""

    found: T

    def __init__(self, collector: Collector, predicate: Callable[[list[Span]], T]) -> None:
        self._collector, self._predicate = collector, predicate

    def __call__(self) -> T:
        self.found = self._predicate(list(self._collector.spans))
        return self.found

    def __repr__(self) -> str:
        traces = [self._collector.trace(one) for one in {s.trace_id for s in self._collector.spans}]
        told = [", ".join(f"{s.service}:{s.name}" for s in trace) for trace in traces]
        return "of the traces\n" + "\n".join(sorted(told))


class _Servicer(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def Export(self, request: Request, context: grpc.ServicerContext) -> Response:
        if self._collector.status != 200:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the collector was told to refuse")
        self._collector.take(request, context.invocation_metadata())
        return Response()


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            as_json = "json" in self.headers.get("Content-Type", "")
            status = collector.status if self.path == "/v1/traces" else 404
            if status == 200:
                request = request_of_json(body) if as_json else Request.FromString(body)
                collector.take(request, self.headers.items())
            kind, reply = ("json", b"{}") if as_json else ("x-protobuf", b"")
            self.send_response(status)
            self.send_header("Content-Type", f"application/{kind}")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_args: object) -> None:
            pass

    return Handler


def request_of_json(body: bytes) -> Request:
    """OTLP's JSON is protobuf's, but for ids, which are hex and not base64."""

    def fix(one: dict[str, Any]) -> None:
        for key in ("traceId", "spanId", "parentSpanId"):
            if key in one:
                one[key] = base64.b64encode(bytes.fromhex(one[key])).decode()

    message = json.loads(body)
    for resource in message.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                for one in (span, *span.get("links", ())):
                    fix(one)
    return json_format.ParseDict(message, Request(), ignore_unknown_fields=True)


def spans_of(request: Request) -> list[Span]:
    """The spans of an export."""
    found = []
    for resource in request.resource_spans:
        said = _attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            found += [_span(span, said, scope.scope.name) for span in scope.spans]
    return found


def _span(span: trace_pb2.Span, resource: dict[str, Value], scope: str) -> Span:
    return Span(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        links=tuple(
            Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
            for link in span.links
        ),
        events=tuple(
            Event(event.time_unix_nano, event.name, _attributes(event.attributes))
            for event in span.events
        ),
        service=str(resource.get("service.name", "")),
        status=trace_pb2.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
        message=span.status.message,
        state=span.trace_state,
        scope=scope,
        resource=resource,
    )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, Value]:
    """Lists and maps, which we never send, come as None."""
    plain = {"string_value", "int_value", "double_value", "bool_value", "bytes_value"}
    found: dict[str, Value] = {}
    for pair in pairs:
        which = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, which) if which in plain else None
    return found


@contextlib.contextmanager
def mute_endpoint() -> Iterator[str]:
    """An endpoint that takes connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def dead_endpoint() -> Iterator[str]:
    """An endpoint that nobody listens on; nobody else gets its port meanwhile."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{holder.getsockname()[1]}"

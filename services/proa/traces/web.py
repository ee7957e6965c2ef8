"""OTLP over HTTP: POST /v1/traces in protobuf or JSON, perhaps gzipped, within limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from proa.errors import InvalidRequest
from proa.traces import otlp
from proa.traces.spans import Span

PATH = "/v1/traces"
CONNECTIONS_MAX = 64
_REQUEST_S_MAX = 10.0
_DELIVERY_S_MAX = 10.0
_DISCARD_BYTES_MAX = 8 * otlp.BODY_BYTES_MAX
_JSON, _PROTOBUF, _TEXT = "application/json", "application/x-protobuf", "text/plain"
_READERS = {_JSON: otlp.read_json, _PROTOBUF: otlp.read_protobuf}

Deliver = Callable[[list[Span]], None]


class Inbox:
    """From the threads of HTTP into the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, deliver: Deliver) -> None:
        self._loop = loop
        self._deliver = deliver

    def put(self, spans: list[Span]) -> None:
        """Blocks until they were delivered. Errors: TimeoutError; RuntimeError (it is closed)."""

        async def run() -> None:
            self._deliver(spans)

        coroutine = run()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise
        future.result(_DELIVERY_S_MAX)


class Server(ThreadingHTTPServer):
    """A thread for each connection, up to CONNECTIONS_MAX; more are hung up on."""

    daemon_threads = True
    block_on_close = False  # an exporter keeps its connection open
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], inbox: Inbox) -> None:
        self.inbox = inbox
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """An exporter that hangs up is no news."""


class _Refused(Exception):
    """Answered with `status` and the reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # exporters keep their connection
    timeout = _REQUEST_S_MAX
    server: Server

    def do_POST(self) -> None:
        try:
            kind = self._export()
        except _Refused as exc:
            self._refuse(exc.status, str(exc))
        except otlp.BodyTooLarge as exc:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(exc))
        except InvalidRequest as exc:
            self._refuse(HTTPStatus.BAD_REQUEST, str(exc))
        except (TimeoutError, RuntimeError):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "closing")
        else:
            self._answer(HTTPStatus.OK, kind, b"{}" if kind == _JSON else b"")

    def do_GET(self) -> None:
        self._refuse(HTTPStatus.NOT_FOUND, f"this is `proa trace`: POST spans to {PATH}")

    def _export(self) -> str:
        if self.path.partition("?")[0] != PATH:
            raise _Refused(HTTPStatus.NOT_FOUND, f"only {PATH} is here")
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind not in _READERS:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"send {_PROTOBUF} or {_JSON}")
        self.server.inbox.put(_READERS[kind](self._body()))
        return kind

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 12:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a Content-Length is required")
        if int(length) > otlp.BODY_BYTES_MAX:
            self._discard(int(length))
            raise otlp.BodyTooLarge(f"more than {otlp.BODY_BYTES_MAX} bytes")
        body = self.rfile.read(int(length))
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip"):
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only gzip is decompressed")
        return otlp.gunzip(body) if encoding == "gzip" else body

    def _discard(self, length: int) -> None:
        """Who is still sending does not read an answer."""
        left = min(length, _DISCARD_BYTES_MAX)
        while left > 0 and (chunk := self.rfile.read(min(left, 1 << 16))):
            left -= len(chunk)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # The body may still be on its way: what follows it could not be told from it.
        self.close_connection = True
        self._answer(status, _TEXT, reason[:500].encode("utf-8", "replace"))

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Spans come all the time: no log."""

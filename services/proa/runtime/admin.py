"""The admin port: /livez, /readyz, /metrics and more pages over plain HTTP, for the kubelet,
Prometheus and people.

It runs in threads of its own, so that it can tell that the event loop is stuck. It has no
authentication and changes nothing: it reads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST, choose_encoder

from proa.errors import EnvironmentLacks

log = logging.getLogger(__name__)

BEAT_S_MAX = 10.0
CONNECTIONS_MAX = 64
_REQUEST_S_MAX = 5.0
_TEXT = "text/plain; charset=utf-8"
# Nothing here is for other sites' pages: not to be read, framed, guessed at or kept.
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Request:
    """A GET or HEAD; `query`: what follows the question mark; `host`, `accept`: its headers."""

    path: str
    query: str = ""
    host: str = ""
    accept: str = ""


@dataclass(frozen=True)
class Page:
    """An answer. `headers`: beside the usual ones, or instead of them."""

    status: HTTPStatus
    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


# Called in threads. None: there is no such page.
Pages = Callable[[Request], Page | None]


class Admin:
    """Not ready until `set_ready`; alive while `beat` is called at least every 10 s.

    port 0: any free port, see `.port` after `start`. `pages`: what there is beside the usual ones.
    `now`: monotonic seconds.
    """

    def __init__(
        self,
        port: int,
        registry: CollectorRegistry,
        host: str = "0.0.0.0",  # noqa: S104  # kubelet and Prometheus come from outside the pod
        *,
        pages: Pages = lambda _request: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = port
        self._host = host
        self._registry = registry
        self._pages = pages
        self._now = now
        self._beat_s = now()
        self._ready = (False, "starting")
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen. Errors: EnvironmentLacks (the port is taken). A second start does nothing."""
        if self._server is not None:
            return
        self.beat()
        try:
            self._server = _Server((self._host, self.port), _handler(self._page))
        except OSError as exc:
            raise EnvironmentLacks(
                f"the admin port cannot listen on {self._host}:{self.port}: {exc.strerror}"
            ) from exc
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="admin", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop listening; answers under way are finished."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def set_ready(self, ready: bool, reason: str = "") -> None:
        """What /readyz says from now on. `reason`: why not."""
        self._ready = (ready, reason)

    def beat(self) -> None:
        """The event loop turns."""
        self._beat_s = self._now()

    def _page(self, request: Request) -> Page | None:
        match request.path:
            case "/livez":
                quiet_s = self._now() - self._beat_s
                return _verdict(quiet_s <= BEAT_S_MAX, f"no heartbeat for {quiet_s:.1f} s")
            case "/readyz":
                return _verdict(*self._ready)
            case "/metrics":
                return self._metrics(request.accept)
        return self._pages(request)

    def _metrics(self, accept: str) -> Page:
        """In the format asked for: only OpenMetrics has exemplars."""
        if "application/openmetrics-text" in accept:
            # A version that is none is no reason to fail: the usual format will do.
            with contextlib.suppress(TypeError, ValueError):
                encode, kind = choose_encoder(accept)
                return Page(HTTPStatus.OK, kind, encode(self._registry))
        return Page(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry))


def _verdict(good: bool, reason: str) -> Page:
    if good:
        return Page(HTTPStatus.OK, _TEXT, b"ok\n")
    return Page(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{reason}\n".encode())


class _Server(ThreadingHTTPServer):
    """A thread for each connection, up to CONNECTIONS_MAX. At the limit the oldest connection is
    hung up on: whoever holds many and says nothing must not keep the kubelet out."""

    daemon_threads = True
    # A restart must not wait for old connections; two processes on one port still collide.
    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: OrderedDict[socket.socket, None] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._open) >= CONNECTIONS_MAX:
                oldest, _ = self._open.popitem(last=False)
                with contextlib.suppress(OSError):  # its thread wakes up, and closes it
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A prober that hangs up is no news."""


def _handler(page: Callable[[Request], Page | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S_MAX
        server_version = "proa"
        sys_version = ""
        error_content_type = _TEXT
        error_message_format = "%(code)d %(message)s\n"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            host, accept = self.headers.get("Host", ""), self.headers.get("Accept", "")
            try:
                found = page(Request(path, query, host, accept))
            except Exception:
                log.exception("the admin page %.80s failed", path)
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
                return
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(found.status)
            self._usual = {**_HEADERS, **found.headers}
            self.send_header("Content-Type", found.kind)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def end_headers(self) -> None:
            # Refusals get them too, those that the base class makes on its own included.
            for name, value in getattr(self, "_usual", _HEADERS).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes come every second: no log."""

    return Handler

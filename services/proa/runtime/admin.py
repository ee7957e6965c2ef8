"""The admin port: /livez, /readyz and /metrics over plain HTTP, for the kubelet and Prometheus.

It runs in threads of its own, so that it can tell that the event loop is stuck.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from proa.errors import EnvironmentLacks

BEAT_S_MAX = 10.0
CONNECTIONS_MAX = 64
_REQUEST_S_MAX = 5.0
_TEXT = "text/plain; charset=utf-8"

Page = tuple[HTTPStatus, str, bytes]


class Admin:
    """Not ready until `set_ready`; alive while `beat` is called at least every 10 s.

    port 0: any free port, see `.port` after `start`. `now`: monotonic seconds.
    """

    def __init__(
        self,
        port: int,
        registry: CollectorRegistry,
        host: str = "0.0.0.0",  # noqa: S104  # kubelet and Prometheus come from outside the pod
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = port
        self._host = host
        self._registry = registry
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

    def _page(self, path: str) -> Page | None:
        match path.partition("?")[0]:
            case "/livez":
                quiet_s = self._now() - self._beat_s
                return _verdict(quiet_s <= BEAT_S_MAX, f"no heartbeat for {quiet_s:.1f} s")
            case "/readyz":
                return _verdict(*self._ready)
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
        return None


def _verdict(good: bool, reason: str) -> Page:
    if good:
        return HTTPStatus.OK, _TEXT, b"ok\n"
    return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{reason}\n".encode()


class _Server(ThreadingHTTPServer):
    """A thread for each connection, up to CONNECTIONS_MAX; more are hung up on."""

    daemon_threads = True
    # A restart must not wait for old connections; two processes on one port still collide.
    allow_reuse_address = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, handler)

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
        """A prober that hangs up is no news."""


def _handler(page: Callable[[str], Page | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S_MAX

        def do_GET(self) -> None:
            found = page(self.path)
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            status, kind, body = found
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes come every second: no log."""

    return Handler

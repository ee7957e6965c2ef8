"""A real HTTP server on loopback with a few files, and a small S3 in front of them."""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/s3/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{64}"
)
S3_ERROR = "<Error><Code>{code}</Code><Message>{message}</Message></Error>"


@dataclass
class FileServer:
    """`files`: content by path. `script`: what happens to the next requests instead of an answer: a
    status, "cut" (half the content, then the end), "stall" (nothing, until the end of the test).
    `access_key`: requests must carry an S3 signature of it. `seen`: the requests, with headers."""

    files: dict[str, bytes]
    script: deque[int | str] = field(default_factory=deque)
    access_key: str | None = None
    chunked: bool = False
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def __enter__(self) -> Self:
        owner = self

        class Handler(_Handler):
            server_of = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_of: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        owner = self.server_of
        path = self.path.partition("?")[0]
        owner.seen.append((self.path, dict(self.headers)))
        order = owner.script.popleft() if owner.script else 200
        if owner.access_key is not None and not self._signed(owner.access_key):
            self._answer(403, S3_ERROR.format(code="AccessDenied", message="no such key").encode())
        elif order == "stall":
            owner.ended.wait()
            self.close_connection = True
        elif order == "cut":
            self._answer(200, owner.files[path], sent=len(owner.files[path]) // 2)
        elif order != 200:
            self._answer(int(order), b"")
        elif path.startswith("/moved"):
            self._answer(302, b"", Location=path.removeprefix("/moved"))
        elif path in owner.files:
            self._answer(200, owner.files[path])
        else:
            self._answer(404, S3_ERROR.format(code="NoSuchKey", message="not here").encode())

    def _signed(self, key: str) -> bool:
        found = SIGNED.fullmatch(self.headers.get("Authorization", ""))
        return found is not None and found["key"] == key

    def _answer(self, status: int, body: bytes, sent: int | None = None, **headers: str) -> None:
        self.send_response(status)
        chunked = self.server_of.chunked and status == 200
        for name, value in headers.items():
            self.send_header(name, value)
        if status >= 400:
            self.send_header("Content-Type", "application/xml")
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[:sent]
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
        self.close_connection = sent is not None

    def log_message(self, *_args: Any) -> None:
        """Quiet."""

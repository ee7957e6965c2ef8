"""A real HTTP server on loopback with a few files, and a small S3 in front of them."""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/s3/aws4_request, "
    r"SignedHeaders=[a-z0-9;-]+, Signature=[0-9a-f]{64}"
)
S3 = "http://s3.amazonaws.com/doc/2006-03-01/"
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
        elif "list-type=2" in self.path:
            self._list(path)
        elif path.startswith("/moved"):
            self._answer(302, b"", Location=path.removeprefix("/moved"))
        elif path in owner.files:
            self._answer(200, owner.files[path])
        else:
            self._answer(404, S3_ERROR.format(code="NoSuchKey", message="not here").encode())

    def _list(self, bucket: str) -> None:
        """Of a bucket that has something: names that begin with the prefix asked for."""
        owner = self.server_of
        prefix = parse_qs(urlsplit(self.path).query).get("prefix", [""])[0]
        names = [name.removeprefix(f"{bucket}/") for name in sorted(owner.files)]
        found = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>"x"</ETag><Size>1</Size></Contents>'
            for name in names
            if name.startswith(prefix)
        )
        head = f"<Name>{bucket[1:]}</Name><IsTruncated>false</IsTruncated>"
        body = f'<ListBucketResult xmlns="{S3}">{head}{found}'
        self._answer(200, f"{body}</ListBucketResult>".encode())

    def do_HEAD(self) -> None:
        there = self.path in self.server_of.files
        moment = "Thu, 01 Jan 2026 00:00:00 GMT"
        self._answer(200 if there else 404, b"", ETag='"x"', **{"Last-Modified": moment})

    def do_PUT(self) -> None:
        owner = self.server_of
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        order = owner.script.popleft() if owner.script else 200
        if order != 200:
            self._answer(int(order), S3_ERROR.format(code="Trouble", message="no").encode())
            return
        if source := self.headers.get("x-amz-copy-source"):
            owner.files[self.path] = owner.files[f"/{unquote(source).lstrip('/')}"]
            moment = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            result = f'<CopyObjectResult xmlns="{S3}"><ETag>"x"</ETag>{moment}</CopyObjectResult>'
            self._answer(200, result.encode(), ETag='"x"')
        else:
            owner.files[self.path] = body
            self._answer(200, b"", ETag='"x"')

    def do_DELETE(self) -> None:
        self.server_of.files.pop(self.path, None)
        self._answer(204, b"")

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

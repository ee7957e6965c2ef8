"""The console: one page on the admin port, and the JSON document that it asks for every second.

    GET /  or /console            the page
    GET /console.json             everything it shows, of the first model
        ?model=NAME&since=SECONDS of that model; only the seconds (since 1970) after that

A root task on the event loop makes what is shown, once a second; the admin port's threads put
documents together from what is finished and never changes again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs

import proa
from proa.frontend.board import board
from proa.frontend.history import History
from proa.frontend.models import Models
from proa.frontend.windows import FaultWindows
from proa.runtime.admin import Page, Request
from proa.runtime.faults import FaultTable

log = logging.getLogger(__name__)

SAMPLE_S = 0.25
RETRY_S = 10.0
MODELS_MAX = 32
QUERY_CHARS_MAX = 512
FOLDER = Path(__file__).parent / "console"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
}
# Names that no stranger can register: what a page elsewhere has its own name stand for us with
# (DNS rebinding) is none of these.
OWN_DOMAINS = ("svc", "local", "internal", "localhost")
_NOT_HERE = Page(
    HTTPStatus.MISDIRECTED_REQUEST,
    "text/plain; charset=utf-8",
    b"The console answers to an IP address, localhost, or a name inside the cluster only:\n"
    b"kubectl port-forward, then http://localhost:9090/\n",
)


@dataclass(frozen=True)
class _Shown:
    """One model, as JSON that never changes."""

    board: bytes
    rows: tuple[tuple[int, bytes], ...]


class Console:
    """`windows` are the faults it draws; `run` is a root task; `page` is for the admin port.

    `now`: seconds since 1970.
    """

    def __init__(
        self,
        models: Models,
        faults: FaultTable | None = None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.windows = FaultWindows(now)
        if faults is not None:
            faults.watch(self.windows)
        self._models = models
        self._faults = faults is not None
        self._now = now
        self._histories: dict[str, History] = {}
        self._files = {f"/console/{path.name}": _file(path) for path in sorted(FOLDER.iterdir())}
        self._started_ms = round(now() * 1000)
        self._second = int(now())
        # One assignment replaces it: threads see the old one or the new one.
        self._shown: tuple[bytes, dict[str, _Shown]] = (self._head(), {})

    async def run(self) -> None:
        """Look at the models four times a second. Never returns."""
        while True:
            try:
                await self._look()
            except Exception:  # whoever cannot draw can serve nevertheless
                log.exception("the console has no news")
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(SAMPLE_S)

    def page(self, request: Request) -> Page | None:
        """In any thread."""
        path = "/console/index.html" if request.path in ("/", "/console") else request.path
        found = self._files.get(path)
        if found is None and path != "/console.json":
            return None
        if not is_own(request.host):
            return _NOT_HERE
        return found or self._json(request.query)

    async def _look(self) -> None:
        models = dict(list(self._models.by_name.items())[:MODELS_MAX])
        for gone in self._histories.keys() - models.keys():
            del self._histories[gone]
        for name, model in models.items():
            if name not in self._histories:
                self._histories[name] = History(model, time.monotonic())
            self._histories[name].sample(model, time.monotonic())
        second = int(self._now())
        if second == self._second:
            return
        over, self._second = self._second, second
        shown = {}
        for name, model in models.items():
            history = self._histories[name]
            history.close(model, over, time.monotonic())
            text = json.dumps(board(model, history), separators=(",", ":"))
            shown[name] = _Shown(text.encode(), history.rows)
            await asyncio.sleep(0)  # requests go first
        self._shown = (self._head(), shown)

    def _head(self) -> bytes:
        """What does not hang on the model; without the closing brace."""
        names = self._models.by_name
        head = {
            "now_ms": round(self._now() * 1000),
            "started_ms": self._started_ms,
            "version": proa.__version__,
            "ready": self._models.ready,
            "models": list(names)[:MODELS_MAX],
            "models_left_out": max(0, len(names) - MODELS_MAX),
            "faults_allowed": self._faults,
            "faults": [
                {
                    "id": window.id,
                    "action": window.action,
                    "target": window.target,
                    "begin_ms": window.begin_unix_ms,
                    "end_ms": window.end_unix_ms,
                }
                for window in self.windows.recent()
            ],
        }
        return json.dumps(head, separators=(",", ":")).encode()[:-1]

    def _json(self, query: str) -> Page:
        wanted, since = _asked(query)
        head, shown = self._shown
        model = shown.get(wanted) or next(iter(shown.values()), None)
        board_json, rows = (b"null", ()) if model is None else (model.board, model.rows)
        first = bisect_right(rows, since, key=lambda row: row[0])
        seconds = b",".join(row for _, row in rows[first:])
        body = head + b',"model":' + board_json + b',"seconds":[' + seconds + b"]}"
        return Page(HTTPStatus.OK, "application/json", body, POLICY)


def _asked(query: str) -> tuple[str, int]:
    """Model and second; what makes no sense is as if it were not there."""
    try:
        fields = parse_qs(query[:QUERY_CHARS_MAX], max_num_fields=8)
    except ValueError:
        return "", 0
    since = fields.get("since", ["0"])[0]
    number = int(since) if since.isascii() and since.isdigit() and len(since) < 16 else 0
    return fields.get("model", [""])[0], number


def _file(path: Path) -> Page:
    return Page(HTTPStatus.OK, KINDS[path.suffix], path.read_bytes(), POLICY)


def is_own(host: str) -> bool:
    """Whether a Host header is an address, localhost, or a name inside the cluster."""
    name = host.strip()
    if name.startswith("["):
        name = name.partition("]")[0].lstrip("[")
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.lower().rstrip(".").split(".")
        return len(labels) == 1 or labels[-1] in OWN_DOMAINS
    return True

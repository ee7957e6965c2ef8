"""Asking a process on loopback how it is: GET /readyz and /livez on its admin port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

_ANSWER_BYTES_MAX = 4096


@dataclass(frozen=True)
class Probe:
    """An answer. `status`: the HTTP status, or 0 when there was none; `text`: the body, or why."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 200


async def probe(port: int, path: str, *, timeout_s: float) -> Probe:
    """GET http://127.0.0.1:PORT/PATH. Never raises for what the peer does."""
    try:
        async with asyncio.timeout(timeout_s):
            return _parse(await _get(port, path))
    except TimeoutError:
        return Probe(0, f"no answer on port {port} within {timeout_s:g} s")
    except OSError as exc:
        return Probe(0, f"port {port}: {exc.strerror or exc}")


async def _get(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        answer = b""
        while len(answer) < _ANSWER_BYTES_MAX:
            chunk = await reader.read(_ANSWER_BYTES_MAX)
            if not chunk:
                break
            answer += chunk
        return answer
    finally:
        writer.close()


def _parse(answer: bytes) -> Probe:
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        return Probe(0, "the answer is not HTTP")
    return Probe(int(words[1]), body.strip())

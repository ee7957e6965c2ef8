"""A Service with a cluster IP: each new connection goes to one of its endpoints and stays there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Self

CHUNK_BYTES = 1 << 16


class FakeService:
    """Forwards bytes, as kube-proxy does; `endpoints` may change at any time, and open connections
    do not mind."""

    def __init__(self, *endpoints: str) -> None:
        self.endpoints = list(endpoints)
        self.address = ""
        self._turn = itertools.count()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            if not self.endpoints:
                return
            endpoint = self.endpoints[next(self._turn) % len(self.endpoints)]
            host, _, port = endpoint.rpartition(":")
            behind = await asyncio.open_connection(host, int(port))
            with contextlib.closing(behind[1]):
                await asyncio.gather(_copy(reader, behind[1]), _copy(behind[0], writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()

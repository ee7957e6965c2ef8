"""The disks of shards, on real servers: Redis >= 7 or Valkey >= 8, by redis-py's connections.

A connection belongs to one life of one server: it asks for `run_id` as soon as it is made, and a
server that was started again in between is another disk, which does not answer. What is sent and
what it means is in `store.disk`, which knows no sockets.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError, ResponseError

from proa.errors import ShardUnavailable
from proa.runtime.certificates import CA, CERTIFICATE, KEY
from proa.store.disk.commands import Command, Steps, info, packed
from proa.store.disk.shard_disk import ShardDisk
from proa.store.disk.views import views
from proa.store.protocol import actions as ac
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.storage import ShardImage, View, Write
from proa.store.tls_connection import ServerTls, TlsConnection

T = TypeVar("T")
REPLIES_LIMITED = 64  # that must come within `timeout_s`


@dataclass(frozen=True, slots=True)
class Server:
    """Where a shard's server listens: `path` of a unix socket, or host and port.

    tls: paths `ca`, `cert`, `key` (PEM) and the `name` that the server's certificate must be for,
    empty: the host; without `ca`: no TLS. timeout_s: for one exchange.
    """

    path: str = ""
    host: str = "127.0.0.1"
    port: int = 6379
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca: str = ""
    cert: str = ""
    key: str = ""
    name: str = ""
    timeout_s: float = 5.0

    def connection(self) -> AbstractConnection:
        """Not connected yet."""
        common: dict[str, Any] = {
            "username": self.username,
            "password": self.password,
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.timeout_s,
            "protocol": 2,
            "driver_info": None,  # else it says its name by a command that our users may not use
        }
        if self.path:
            return UnixDomainSocketConnection(path=self.path, **common)
        if self.ca:
            tls = ServerTls(self.ca, self.cert, self.key, self.name)
            return TlsConnection(tls, host=self.host, port=self.port, **common)
        return Connection(host=self.host, port=self.port, **common)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Link:
    """One connection to one life of a server. Errors: ShardUnavailable, after which it is over."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._connection = server.connection()
        self._lock = asyncio.Lock()
        self.disk = ""

    async def open(self) -> str:
        """Connect; the name of the server's life."""
        async with self._lock:
            if not self.disk:
                reply = (await self._exchange([("INFO", "server")]))[0]
                if isinstance(reply, Exception):
                    raise ShardUnavailable(f"{self.server}: {reply}") from reply
                self.disk = info(reply)["run_id"]
        return self.disk

    async def run(self, steps: Steps[T]) -> T:
        """Everything that `steps` asks for, and what it found; one at a time."""
        async with self._lock:
            try:
                commands = next(steps)
                while True:
                    commands = steps.send(await self._exchange(commands))
            except StopIteration as done:
                found: T = done.value
                return found

    async def _exchange(self, commands: Iterable[Command]) -> list[Any]:
        connection, sent = self._connection, list(commands)
        if self.disk and not connection.is_connected:
            raise ShardUnavailable(f"{self.server}: the connection is closed")
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(packed(sent), check_health=False)
            return await self._replies(len(sent))
        except (RedisError, OSError) as exc:
            await self.close()
            raise ShardUnavailable(f"{self.server}: {exc}") from exc
        except BaseException:  # cancelled: what was asked for would be the next one's answer
            await self.close()
            raise

    async def _replies(self, count: int) -> list[Any]:
        """One limit on the time of many replies: a limit for each costs more than the reply."""
        loop, found = asyncio.get_running_loop(), []
        async with asyncio.timeout(None) as limit:
            for number in range(count):
                if number % REPLIES_LIMITED == 0:
                    limit.reschedule(loop.time() + self.server.timeout_s)
                found.append(await self._reply())
        return found

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(timeout=math.inf, disconnect_on_error=False)
        except ResponseError as exc:
            return exc

    async def close(self) -> None:
        """No more exchanges."""
        await self._connection.disconnect(nowait=True)


class RedisDisk:
    """The own disk of a shard's agent. Errors: ShardUnavailable; then `image` again."""

    def __init__(self, shard: int, server: Server, nonce: int, store: str = "") -> None:
        self._server = server
        self._disk = ShardDisk(shard, nonce, store)
        self._link: Link | None = None

    async def image(self, layout: Layout) -> ShardImage:
        """Take the disk, so that whoever had it writes no more, and read what it holds. Errors:
        ShardUnavailable, InvalidRequest (evicts, too old, another store's)."""
        await self.close()
        link = Link(self._server)
        try:
            await link.open()
            image = await link.run(self._disk.image(layout))
        except BaseException:
            await link.close()
            raise
        self._link = link
        return image

    def extend(self, layout: Layout) -> None:
        """Tables were added."""
        self._disk.extend(layout)

    async def commit(self, writes: tuple[Write, ...]) -> tuple[int, ...] | None:
        """All of it in one transaction. None: done. Else nothing was written: the stripes whose
        rows are gone or bad; none: no memory."""
        return await self._linked().run(self._disk.commit(writes))

    async def fetch(self, rows: Mapping[Block, Rows]) -> ac.Found:
        """Rows of own blocks."""
        return await self._linked().run(self._disk.fetch(rows))

    async def perform(
        self, actions: list[ac.Commit | ac.Fetch]
    ) -> list[ac.Committed | ac.CommitFailed | ac.Fetched]:
        """In order, an event for each; commits that follow each other are one transaction. Fewer
        events: the server is out of memory, and did nothing of the rest."""
        return await self._linked().run(self._disk.perform(actions))

    async def memory(self) -> tuple[int, int]:
        """Bytes that the server uses, and those that it may use; 0: no limit."""
        return await self._linked().run(_memory())

    async def renew_certificate(self, folder: str) -> None:
        """The server reads tls.crt, tls.key and ca.crt of its `folder` anew. Errors:
        ShardUnavailable, also when the server refuses."""
        await self._linked().run(_renewal(folder))

    def _linked(self) -> Link:
        if self._link is None:
            raise ShardUnavailable(f"{self._server}: not connected")
        return self._link

    async def close(self) -> None:
        """Disconnect."""
        if self._link is not None:
            await self._link.close()
            self._link = None


def _memory() -> Steps[tuple[int, int]]:
    (reply,) = yield [("INFO", "memory")]
    found = info(reply)
    return int(found["used_memory"]), int(found["maxmemory"])


def _renewal(folder: str) -> Steps[None]:
    files = {"tls-cert-file": CERTIFICATE, "tls-key-file": KEY, "tls-ca-cert-file": CA}
    pairs = [part for name, file in files.items() for part in (name, f"{folder}/{file}")]
    (reply,) = yield [("CONFIG", "SET", *pairs)]
    if isinstance(reply, Exception):
        raise ShardUnavailable(f"the server keeps its old certificate: {reply}") from reply


class RedisViews:
    """Reads of the disks of all shards; connects when it must. `layout`: the one in force."""

    def __init__(self, servers: Mapping[int, Server], layout: Callable[[], Layout]) -> None:
        self._servers, self._layout = servers, layout
        self._links: dict[int, Link] = {}

    async def view(self, shard: int, disk: str, block: Block, rows: Rows) -> View | None:
        """One block. None: not reached, another disk, or it knows nothing of the block."""
        found = await self.views(shard, disk, {block: rows})
        return None if found is None else found.get(block)

    async def views(
        self, shard: int, disk: str, asked: Mapping[Block, Rows], *, logs: bool = True
    ) -> dict[Block, View] | None:
        """Many blocks of one moment. None: the shard was not reached, or is another disk."""
        link = self._link(shard)
        try:
            if await link.open() == disk:
                return await link.run(views(self._layout(), asked, logs=logs))
        except ShardUnavailable:
            pass
        await self._drop(shard, link)
        return None

    async def memory(self, shard: int) -> tuple[int, int] | None:
        """As RedisDisk.memory. None: not reached."""
        link = self._link(shard)
        try:
            await link.open()
            return await link.run(_memory())
        except ShardUnavailable:
            await self._drop(shard, link)
            return None

    def _link(self, shard: int) -> Link:
        link = self._links.get(shard)
        if link is None:
            link = self._links[shard] = Link(self._servers[shard])
        return link

    async def _drop(self, shard: int, link: Link) -> None:
        if self._links.get(shard) is link:
            del self._links[shard]
        await link.close()

    async def close(self) -> None:
        """Disconnect."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await link.close()

"""What a process knows of a store from its coordinator: the map, the tables, the addresses."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property

import grpc.aio

from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import ProaError, ShardUnavailable
from proa.rpc import Channels, peer_errors
from proa.store import wire
from proa.store.post import ROLE
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.redis_disk import Server
from proa.store.tables import Catalogue

log = logging.getLogger(__name__)

REFRESH_S = 0.2
ASK_S_MAX = 1.0


@dataclass(frozen=True)
class Told:
    """One answer of the coordinator. `until`: of the loop's clock; do not use the map after it."""

    store: str
    map: ClusterMap
    catalogue: Catalogue
    agents: tuple[str, ...]
    servers: tuple[str, ...]
    until: float

    @cached_property
    def usable(self) -> Catalogue:
        """The tables that all shards have: nothing may be pushed to others yet."""
        ready = tuple(
            placed
            for placed in self.catalogue.tables
            if placed.extent.first + placed.extent.stripes <= self.map.settled
        )
        return replace(self.catalogue, tables=ready)

    def address(self, shard: int) -> str:
        """Of the agent that has the shard."""
        return self.agents[shard]


def server_at(address: str) -> Server:
    """host:port, or the path of a unix socket."""
    if address.startswith("/"):
        return Server(path=address)
    host, _, port = address.rpartition(":")
    return Server(host=host, port=int(port))


async def ask(channels: Channels, coordinator: str, known: Told | None) -> Told:
    """What is so now. Errors: ProaError."""
    asked = asyncio.get_running_loop().time()
    stub = store_pb2_grpc.EmbeddingStoreStub(channels(coordinator, ROLE))  # type: ignore[no-untyped-call]
    version = known.catalogue.version + 1 if known else 0
    async with peer_errors(f"coordinator {coordinator}"):
        found = await stub.GetMap(
            store_pb2.GetMapRequest(catalogue_version=version), timeout=ASK_S_MAX
        )
    catalogue = known.catalogue if known else None
    if found.catalogue:
        catalogue = Catalogue.from_json(json.loads(found.catalogue))
    assert catalogue is not None
    return Told(
        store=found.store,
        map=wire.map_from_proto(found.map),
        catalogue=catalogue,
        agents=tuple(found.agents),
        servers=tuple(found.servers),
        until=asked + found.ttl_ms / 1000.0,
    )


class MapKeeper:
    """Asks again and again. `run` is a root task."""

    def __init__(self, channels: Channels, coordinator: str) -> None:
        self._channels, self._coordinator = channels, coordinator
        self.latest: Told | None = None
        self._why = "not asked yet"
        self._came = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Never returns."""
        while True:
            try:
                self.latest = await ask(self._channels, self._coordinator, self.latest)
                self._came.set()
            except (ProaError, grpc.aio.AioRpcError) as exc:
                self._why = str(exc)
            self._hurry.clear()
            try:
                async with asyncio.timeout(REFRESH_S):
                    await self._hurry.wait()
                await asyncio.sleep(REFRESH_S / 10)  # whoever hurries waits for something to change
            except TimeoutError:
                pass

    def hurry(self) -> None:
        """The map is not right any more."""
        self._hurry.set()

    async def fresh(self, deadline: float) -> Told:
        """One that may still be used. Errors: ShardUnavailable at `deadline` (loop's clock)."""
        loop = asyncio.get_running_loop()
        while True:
            told = self.latest
            if told is not None and loop.time() < told.until:
                return told
            self._came.clear()
            self.hurry()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._came.wait()
            except TimeoutError:
                raise ShardUnavailable(
                    f"coordinator {self._coordinator} does not answer: {self._why}"
                ) from None

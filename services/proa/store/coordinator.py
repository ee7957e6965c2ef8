"""Composes the coordinator of a store."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from proa.api.v1 import store_pb2_grpc
from proa.errors import SettingsError
from proa.rpc import Channels
from proa.runtime.admin import Admin
from proa.runtime.selfcheck import check_port, keep_checking
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.settings import from_env
from proa.store import peer
from proa.store.books import Books
from proa.store.keeper import StateFile
from proa.store.post import Post
from proa.store.protocol.actions import COORDINATOR
from proa.store.protocol.config import StoreConfig
from proa.store.service import NAME, StoreService
from proa.store.settings import CoordinatorSettings
from proa.store.tables import Catalogue

log = logging.getLogger(__name__)

SPARE_CALLS = 64


async def main() -> None:
    await serve_coordinator(from_env(CoordinatorSettings, os.environ))


async def serve_coordinator(
    settings: CoordinatorSettings,
    *,
    config: StoreConfig | None = None,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port."""
    addresses = settings.addresses
    fresh = Catalogue.new(settings.k, settings.r, [one.domain for one in addresses])

    def address(to: object) -> str:
        if not isinstance(to, int):
            raise SettingsError(f"nobody is called {to}")
        return addresses[to].agent

    channels = Channels(message_bytes_max=settings.message_bytes_max)
    post = Post(COORDINATOR, address, channels)
    file = StateFile(settings.state)
    try:
        books = Books(file, fresh, post, config or StoreConfig())
        service = StoreService(books, addresses, channels)
        try:
            await _serve(settings, books, service, listening)
        finally:
            await service.close()
    finally:
        await post.close()
        await channels.close()
        file.close()


async def _serve(
    settings: CoordinatorSettings,
    books: Books,
    service: StoreService,
    listening: asyncio.Future[tuple[int, int]] | None,
) -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    _export(registry, books)
    server = make_server(
        message_bytes_max=settings.message_bytes_max, calls_max=settings.calls_max + SPARE_CALLS
    )
    count = len(settings.addresses)
    peer.add_peer(server, peer.PeerService(lambda: count, books.keeper.receive))
    store_pb2_grpc.add_EmbeddingStoreServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health = await make_health(server)
    add_reflection(server, [NAME, peer.NAME])
    port = listen(server, settings.host, settings.port)
    service.address = f"127.0.0.1:{port}"
    admin = Admin(settings.admin_port, registry, settings.host)
    admin.start()
    log.info("listening port=%d store=%s shards=%d", port, books.store, count)
    if listening is not None:
        listening.set_result((port, admin.port))
    ready = asyncio.Event()

    async def check() -> None:
        await check_port(settings.host, port)

    roots: dict[str, Awaitable[None]] = {
        "keeper": books.keeper.run(),
        "self-check": keep_checking(check, ready, interval_s=0.2),
    }
    await serve(
        server, health=health, admin=admin, roots=roots, ready=ready, grace_s=settings.grace_s
    )


def _export(registry: CollectorRegistry, books: Books) -> None:
    version = Gauge("proa_store_map_version", "Version of the map", registry=registry)
    version.set_function(lambda: books.map.version)
    up = Gauge("proa_store_shards_up", "Shards whose agent is heard of", registry=registry)
    up.set_function(lambda: sum(entry.up for entry in books.map.shards.values()))
    shards = Gauge("proa_store_shards", "Shards of the store", registry=registry)
    shards.set_function(lambda: len(books.map.shards))
    tables = Gauge("proa_store_tables", "Tables", registry=registry)
    tables.set_function(lambda: len(books.catalogue.tables))

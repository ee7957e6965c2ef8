"""Composes the coordinator of a store."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Mapping

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from proa.api.v1 import store_pb2_grpc
from proa.errors import SettingsError
from proa.rpc import Channels
from proa.runtime.admin import Admin
from proa.runtime.selfcheck import check_port, keep_checking
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.settings import from_env
from proa.runtime.tls import TlsFiles, export_expiry, open_tls
from proa.store import peer
from proa.store.access import TLS_SETTING
from proa.store.books import Books
from proa.store.places import Place, place_of
from proa.store.post import ROLE, Post
from proa.store.protocol.actions import COORDINATOR
from proa.store.protocol.config import StoreConfig
from proa.store.service import NAME, StoreService
from proa.store.settings import CoordinatorSettings
from proa.store.tables import Catalogue
from proa.store.tenure import seat

log = logging.getLogger(__name__)

SPARE_CALLS = 64


async def main() -> None:
    await serve_coordinator(from_env(CoordinatorSettings, os.environ), environ=os.environ)


async def serve_coordinator(
    settings: CoordinatorSettings,
    *,
    config: StoreConfig | None = None,
    environ: Mapping[str, str] | None = None,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port. `environ`: says
    where the Kubernetes API is, and has AWS_* for snapshots in buckets."""
    addresses = settings.addresses
    fresh = Catalogue.new(settings.k, settings.r, [one.domain for one in addresses])

    def address(to: object) -> str:
        if not isinstance(to, int):
            raise SettingsError(f"nobody is called {to}")
        return addresses[to].agent

    def place(name: str) -> Place:
        return place_of(name, environ or {}, settings.s3_endpoint, settings.s3_region)

    access = settings.others
    tls = open_tls(settings.tls_dir, TLS_SETTING, ROLE)
    channels = Channels(message_bytes_max=settings.message_bytes_max, tls=tls)
    post = Post(COORDINATOR, address, channels)
    registry = CollectorRegistry()
    admin = Admin(settings.admin_port, registry, settings.host)
    admin.start()

    def waiting() -> None:
        # Who waits for the Lease is alive and ready to take over, and does not listen: so callers
        # of the coordinators' common name find the one that works.
        admin.beat()
        admin.set_ready(True)

    try:
        held = seat(settings.state, settings.holder, environ or {}, waiting)
        async with held as (state, tenure):
            admin.set_ready(False, "starting")
            books = Books(state, fresh, post, config or StoreConfig(), tenure)
            service = StoreService(
                books, addresses, channels, access=access, place=place,
                message_bytes_max=settings.message_bytes_max,
            )  # fmt: skip
            try:
                await _serve(settings, books, service, admin, registry, tls, listening)
            finally:
                await service.close()
    finally:
        admin.stop()
        await post.close()
        await channels.close()


async def _serve(
    settings: CoordinatorSettings,
    books: Books,
    service: StoreService,
    admin: Admin,
    registry: CollectorRegistry,
    tls: TlsFiles | None,
    listening: asyncio.Future[tuple[int, int]] | None,
) -> None:
    ProcessCollector(registry=registry)
    _export(registry, books)
    server = make_server(
        message_bytes_max=settings.message_bytes_max, calls_max=settings.calls_max + SPARE_CALLS
    )
    count = len(settings.addresses)
    peer.add_peer(server, peer.PeerService(lambda: count, books.receive))
    store_pb2_grpc.add_EmbeddingStoreServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    health = await make_health(server)
    add_reflection(server, [NAME, peer.NAME])
    port = listen(server, settings.host, settings.port, tls.server() if tls else None)
    service.address = f"127.0.0.1:{port}"
    log.info("listening port=%d store=%s shards=%d", port, books.store, count)
    if listening is not None:
        listening.set_result((port, admin.port))
    ready = asyncio.Event()

    async def check() -> None:
        if tls:
            tls.check()
        await check_port(settings.host, port)

    roots: dict[str, Awaitable[None]] = {
        "keeper": books.keeper.run(),
        "tenure": books.tenure.watch(),
        "self-check": keep_checking(check, ready, interval_s=0.2),
    }
    if tls:
        export_expiry(registry, {"services": tls})
        roots["certificate"] = tls.watch()
    await serve(
        server, health=health, admin=admin, roots=roots, ready=ready, grace_s=settings.grace_s
    )


def _export(registry: CollectorRegistry, books: Books) -> None:
    version = Gauge("proa_store_map_version", "Version of the map", registry=registry)
    version.set_function(lambda: books.keeper.map.version)
    up = Gauge("proa_store_shards_up", "Shards whose agent is heard of", registry=registry)
    up.set_function(lambda: sum(entry.up for entry in books.keeper.map.shards.values()))
    shards = Gauge("proa_store_shards", "Shards of the store", registry=registry)
    shards.set_function(lambda: len(books.keeper.map.shards))
    tables = Gauge("proa_store_tables", "Tables", registry=registry)
    tables.set_function(lambda: len(books.catalogue.tables))

"""Composes the frontend process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector

from proa.api.v1 import frontend_pb2_grpc
from proa.cluster.endpoints import EndpointSource
from proa.errors import SettingsError
from proa.frontend.build import Shared, build_model
from proa.frontend.coders import Peers
from proa.frontend.console import Console
from proa.frontend.discovery import Complaints, check_fixed, fixed_view, make_source
from proa.frontend.locks import Locks, open_locks
from proa.frontend.membership import View, view_of
from proa.frontend.metrics import EngineCollector, FrontendMetrics
from proa.frontend.models import Models
from proa.frontend.nursery import Nursery
from proa.frontend.oip import OipService, add_oip
from proa.frontend.settings import FrontendSettings
from proa.frontend.specs import SpecFolder, load_files, watch
from proa.frontend.status import NAME as STATUS_NAME
from proa.frontend.status import StatusService
from proa.frontend.tracing import Storyteller, open_stories
from proa.rpc import Channels
from proa.runtime.admin import Admin
from proa.runtime.faults import FaultTable, add_faults
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.settings import from_env
from proa.runtime.tracing import tracing_of

log = logging.getLogger(__name__)

READY_POLL_S = 0.05

Roots = dict[str, Callable[[], Awaitable[None]]]


async def main() -> None:
    """Serve as the environment says, until cancelled."""
    await serve_frontend(from_env(FrontendSettings, os.environ))


@dataclass(frozen=True)
class World:
    """The models, and the root tasks that keep up with specs and workers."""

    models: Models
    roots: Roots = field(default_factory=dict)
    faults: FaultTable | None = None
    teller: Storyteller | None = None


def build_world(
    settings: FrontendSettings,
    channels: Channels,
    metrics: FrontendMetrics,
    source: EndpointSource | None = None,
    teller: Storyteller | None = None,
) -> World:
    """What the settings name. `source`: instead of the one of the settings; `teller`: None, nothing
    is told of requests. Errors: SpecError, SettingsError, EnvironmentLacks."""
    nursery = Nursery()
    encoders, decoders = Peers(time.monotonic), Peers(time.monotonic)
    faults = FaultTable() if settings.faults else None
    shared = Shared(settings, channels, encoders, decoders, metrics, nursery, faults, teller)

    def spec_error(text: str) -> None:
        log.error("%s", text)
        metrics.spec_errors.inc()

    models = Models(
        lambda spec, before: build_model(spec, shared, before),
        nursery,
        ready_when=settings.ready_when,
        on_error=spec_error,
        on_count=metrics.count_models,
    )

    def see(view: View) -> None:
        for gone in (*encoders.update(view.encoders), *decoders.update(view.decoders)):
            channels.forget(gone)
        metrics.frontends.set(view.frontends)
        metrics.index.set(view.index)
        models.see(view)

    complaints = Complaints(metrics.discovery_errors.inc)
    roots: Roots = {"models": nursery.run}
    fixed: View | None = None
    if source is None and settings.discovery == "static":
        fixed = fixed_view(settings)
        see(fixed)
    else:
        found = source or make_source(settings, lambda: models.specs, complaints)

        async def follow() -> None:
            async for endpoints in found.snapshots():
                complaints.over()
                see(view_of(endpoints, settings.pod, settings.domain))

        roots["discovery"] = follow
    _serve_specs(settings, models, metrics, roots, fixed, spec_error)
    return World(models, roots, faults, teller)


def _serve_specs(
    settings: FrontendSettings,
    models: Models,
    metrics: FrontendMetrics,
    roots: Roots,
    fixed: View | None,
    spec_error: Callable[[str], None],
) -> None:
    """Serve the given files; or what is in the folder, now and from now on."""
    if not Path(settings.specs).is_dir():
        specs = load_files(settings.specs)
        if fixed is not None:
            check_fixed(fixed, specs)
        models.serve(specs)
        return
    folder = SpecFolder(Path(settings.specs), spec_error)
    found = folder.read()
    if found is None:
        raise SettingsError(f"PROA_FRONTEND_SPECS: the folder {settings.specs} cannot be read")
    models.serve(found)
    metrics.models.labels("broken").set_function(lambda: folder.broken)
    roots["specs"] = lambda: watch(folder, models.serve)


async def serve_frontend(
    settings: FrontendSettings,
    *,
    listening: asyncio.Future[tuple[int, int]] | None = None,
    source: EndpointSource | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port; `source`: instead
    of the one that the settings name."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = FrontendMetrics(registry)
    locks = open_locks(settings, registry)
    async with tracing_of("frontend", os.environ, registry) as tracing:
        teller = open_stories(tracing, settings.request_log, metrics.untold)
        channels = Channels(
            message_bytes_max=settings.message_bytes_max, channels_max=8192, tls=locks.services
        )
        world = build_world(settings, channels, metrics, source, teller)
        registry.register(EngineCollector(world.models.engines))
        try:
            await _serve_world(world, locks, settings, registry, metrics, listening)
        finally:
            await world.models.close()
            await channels.close()


async def _serve_world(
    world: World,
    locks: Locks,
    settings: FrontendSettings,
    registry: CollectorRegistry,
    metrics: FrontendMetrics,
    listening: asyncio.Future[tuple[int, int]] | None,
) -> None:
    models = world.models
    server = make_server(
        message_bytes_max=settings.message_bytes_max,
        calls_max=settings.calls_max,
        interceptors=locks.interceptors,
        connection_s_max=locks.connection_s_max,
    )
    streams = settings.stream_inflight_max
    oip = OipService(models, metrics, locks.auth, world.teller, stream_inflight_max=streams)
    oip_name = add_oip(server, oip)
    console = Console(models, world.faults)
    status = StatusService(models, locks.auth, console.windows, watchers_max=settings.watchers_max)
    frontend_pb2_grpc.add_FrontendServicer_to_server(  # type: ignore[no-untyped-call]
        status, server
    )
    names = [oip_name, STATUS_NAME]
    if world.faults is not None:
        names.append(add_faults(server, world.faults, console.windows.announce))
    health = await make_health(server)
    add_reflection(server, names)
    port = listen(server, settings.host, settings.port, locks.credentials)
    admin = Admin(settings.admin_port, registry, host=settings.host, pages=console.page)
    admin.start()
    log.info("listening port=%d models=%s", port, ",".join(models.by_name))
    if listening is not None:
        listening.set_result((port, admin.port))
    ready = asyncio.Event()
    roots = {name: root() for name, root in (world.roots | locks.roots()).items()}
    await serve(
        server,
        health=health,
        admin=admin,
        roots={
            **roots,
            "readiness": _follow_readiness(models, locks, ready),
            "console": console.run(),
        },
        ready=ready,
        grace_s=settings.grace_s,
        drain_s=settings.drain_s,
        on_drain=status.drain,
    )


async def _follow_readiness(models: Models, locks: Locks, ready: asyncio.Event) -> None:
    """Ready while the models that matter have a worker that passed its canary."""
    while True:
        if models.ready and locks.valid:
            ready.set()
        else:
            ready.clear()
        await asyncio.sleep(READY_POLL_S)

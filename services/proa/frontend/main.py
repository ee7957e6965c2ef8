"""Composes the frontend process."""

from __future__ import annotations

import asyncio
import logging
import os

from prometheus_client import CollectorRegistry, ProcessCollector

from proa import spec as specs
from proa.api.v1 import frontend_pb2_grpc
from proa.errors import SettingsError
from proa.frontend.addresses import parse_addresses, parse_workers
from proa.frontend.metrics import EngineCollector, FrontendMetrics
from proa.frontend.models import Model, Models, Peerings, build_model
from proa.frontend.oip import OipService, add_oip
from proa.frontend.settings import FrontendSettings
from proa.frontend.status import NAME as STATUS_NAME
from proa.frontend.status import StatusService
from proa.rpc import Channels
from proa.runtime.admin import Admin
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.settings import from_env

log = logging.getLogger(__name__)

READY_POLL_S = 0.05


async def main() -> None:
    """Serve as the environment says, until cancelled."""
    await serve_frontend(from_env(FrontendSettings, os.environ))


def build_models(
    settings: FrontendSettings, channels: Channels, metrics: FrontendMetrics
) -> Models:
    """The models that the settings name. Errors: SpecError, SettingsError."""
    workers = parse_workers(settings.workers)
    peerings = Peerings(
        channels,
        parse_addresses(settings.encoders, "PROA_FRONTEND_ENCODERS"),
        parse_addresses(settings.decoders, "PROA_FRONTEND_DECODERS"),
    )
    loaded = [specs.load(path.strip()) for path in settings.specs.split(",") if path.strip()]
    names = [spec.name for spec in loaded]
    if len(set(names)) != len(names) or not names:
        raise SettingsError(f"PROA_FRONTEND_SPECS: needs specs of different names, not {names}")
    if set(names) != set(workers):
        raise SettingsError(
            f"PROA_FRONTEND_WORKERS names workers for {sorted(workers)}, the specs {sorted(names)}"
        )
    return Models(
        [build_model(spec, workers[spec.name], settings, peerings, metrics) for spec in loaded]
    )


async def serve_frontend(
    settings: FrontendSettings, *, listening: asyncio.Future[tuple[int, int]] | None = None
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    metrics = FrontendMetrics(registry)
    channels = Channels(message_bytes_max=settings.message_bytes_max, channels_max=8192)
    models = build_models(settings, channels, metrics)
    engines = {name: model.shell.engine for name, model in models.by_name.items()}
    registry.register(EngineCollector(engines))
    server = make_server(message_bytes_max=settings.message_bytes_max, calls_max=settings.calls_max)
    oip = OipService(models, metrics, stream_inflight_max=settings.stream_inflight_max)
    oip_name = add_oip(server, oip)
    status = StatusService(models, watchers_max=settings.watchers_max)
    frontend_pb2_grpc.add_FrontendServicer_to_server(  # type: ignore[no-untyped-call]
        status, server
    )
    health = await make_health(server)
    add_reflection(server, [oip_name, STATUS_NAME])
    port = listen(server, settings.host, settings.port)
    admin = Admin(settings.admin_port, registry, host=settings.host)
    admin.start()
    log.info("listening port=%d models=%s", port, ",".join(models.by_name))
    if listening is not None:
        listening.set_result((port, admin.port))
    ready = asyncio.Event()
    roots = {f"pool of {name}": _run_pool(m) for name, m in models.by_name.items()}
    try:
        await serve(
            server,
            health=health,
            admin=admin,
            roots={**roots, "readiness": _follow_readiness(models, ready)},
            ready=ready,
            grace_s=settings.grace_s,
            on_drain=status.drain,
        )
    finally:
        for model in models.by_name.values():
            await model.shell.close()
        await channels.close()


async def _run_pool(model: Model) -> None:
    await model.pool.run(model.shell)


async def _follow_readiness(models: Models, ready: asyncio.Event) -> None:
    """Ready while every model has a worker that passed its canary."""
    while True:
        if models.ready:
            ready.set()
        else:
            ready.clear()
        await asyncio.sleep(READY_POLL_S)

"""A process with one unary service and no state: what encoder and decoder have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import grpc.aio
from prometheus_client import CollectorRegistry

from proa.runtime.admin import Admin
from proa.runtime.faults import FaultInterceptor, FaultTable, add_faults
from proa.runtime.selfcheck import check_port, keep_checking
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.tls import TlsFiles, export_expiry
from proa.runtime.tracing import TracingInterceptor
from proa.telemetry import Tracing

log = logging.getLogger(__name__)

# Health checks, reflection and calls that are about to be refused need room beside the work.
SPARE_CALLS = 64
UNTRACED: Mapping[str, str] = MappingProxyType({})  # an environment without tracing


class StatelessSettings(Protocol):
    """The settings that `serve_stateless` reads."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def admin_port(self) -> int: ...
    @property
    def message_bytes_max(self) -> int: ...
    @property
    def calls_max(self) -> int: ...
    @property
    def grace_s(self) -> float: ...
    @property
    def drain_s(self) -> float: ...
    @property
    def faults(self) -> bool: ...


@dataclass(frozen=True)
class Service:
    """name: full name as in `proa.api.v1.Encoder`; add: registers the servicer on a server; check:
    does what a request asks for, raises a ProaError where it fails."""

    name: str
    add: Callable[[grpc.aio.Server], None]
    check: Callable[[], Awaitable[None]]


async def serve_stateless(
    service: Service,
    settings: StatelessSettings,
    registry: CollectorRegistry,
    *,
    tls: TlsFiles | None = None,
    tracing: Tracing | None = None,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port. With `tls`, callers
    show a certificate of our CA. With `tracing`, sampled calls have a span."""
    table = FaultTable()
    interceptors: list[grpc.aio.ServerInterceptor[Any, Any]] = []
    if tracing is not None:
        interceptors.append(TracingInterceptor(tracing, service.name))
    if settings.faults:
        interceptors.append(FaultInterceptor(table, service.name))
    server = make_server(
        message_bytes_max=settings.message_bytes_max,
        calls_max=settings.calls_max + SPARE_CALLS,
        interceptors=interceptors,
    )
    service.add(server)
    names = [service.name]
    if settings.faults:
        names.append(add_faults(server, table))
    health = await make_health(server)
    add_reflection(server, names)
    port = listen(server, settings.host, settings.port, tls.server() if tls else None)
    admin = Admin(settings.admin_port, registry, settings.host)
    admin.start()
    log.info("listening port=%d", port)
    if listening is not None:
        listening.set_result((port, admin.port))
    ready = asyncio.Event()

    async def check() -> None:
        if tls:
            tls.check()
        await service.check()
        await check_port(settings.host, port)

    roots: dict[str, Awaitable[None]] = {"self-check": keep_checking(check, ready)}
    if tls:
        export_expiry(registry, {"services": tls})
        roots["certificate"] = tls.watch()
    await serve(
        server,
        health=health,
        admin=admin,
        roots=roots,
        ready=ready,
        grace_s=settings.grace_s,
        drain_s=settings.drain_s,
    )

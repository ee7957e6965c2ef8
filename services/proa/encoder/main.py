"""Composes the encoder process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import grpc.aio
from prometheus_client import CollectorRegistry, ProcessCollector

from proa.api.v1 import encoder_pb2_grpc
from proa.encoder import service
from proa.encoder.settings import EncoderSettings
from proa.parity import ParityRunner
from proa.rpc import ENCODER, Channels
from proa.runtime.settings import from_env
from proa.runtime.stateless import UNTRACED, Service, serve_stateless
from proa.runtime.tls import TlsFiles, open_tls
from proa.runtime.tracing import tracing_of
from proa.telemetry import Tracing


async def main() -> None:
    await serve_encoder(from_env(EncoderSettings, os.environ), environ=os.environ)


async def serve_encoder(
    settings: EncoderSettings,
    *,
    environ: Mapping[str, str] = UNTRACED,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port. `environ`: the
    settings of tracing."""
    tls = open_tls(settings.tls_dir, "PROA_ENCODER_TLS_DIR", ENCODER)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    async with tracing_of("encoder", environ, registry) as tracing:
        await _serve(settings, registry, tls, tracing, listening)


async def _serve(
    settings: EncoderSettings,
    registry: CollectorRegistry,
    tls: TlsFiles | None,
    tracing: Tracing | None,
    listening: asyncio.Future[tuple[int, int]] | None,
) -> None:
    channels = Channels(
        message_bytes_max=settings.message_bytes_max,
        channels_max=settings.workers_max,
        grace_s=settings.deadline_s_max,
        tls=tls,
    )
    servicer = service.EncoderService(
        ParityRunner(channels),
        registry,
        calls_max=settings.calls_max,
        deadline_s_max=settings.deadline_s_max,
        tracing=tracing,
    )

    def add(server: grpc.aio.Server) -> None:
        encoder_pb2_grpc.add_EncoderServicer_to_server(  # type: ignore[no-untyped-call]
            servicer, server
        )

    try:
        await serve_stateless(
            Service(service.NAME, add, service.self_check),
            settings,
            registry,
            tls=tls,
            tracing=tracing,
            listening=listening,
        )
    finally:
        await channels.close()

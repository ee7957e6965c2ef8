"""Composes the decoder process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

import grpc.aio
from prometheus_client import CollectorRegistry, ProcessCollector

from proa.api.v1 import decoder_pb2_grpc
from proa.decoder import service
from proa.decoder.settings import DecoderSettings
from proa.rpc import DECODER
from proa.runtime.settings import from_env
from proa.runtime.stateless import UNTRACED, Service, serve_stateless
from proa.runtime.tls import open_tls
from proa.runtime.tracing import tracing_of


async def main() -> None:
    await serve_decoder(from_env(DecoderSettings, os.environ), environ=os.environ)


async def serve_decoder(
    settings: DecoderSettings,
    *,
    environ: Mapping[str, str] = UNTRACED,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port. `environ`: the
    settings of tracing."""
    tls = open_tls(settings.tls_dir, "PROA_DECODER_TLS_DIR", DECODER)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    servicer = service.DecoderService(registry, calls_max=settings.calls_max)

    def add(server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServicer_to_server(  # type: ignore[no-untyped-call]
            servicer, server
        )

    async with tracing_of("decoder", environ, registry) as tracing:
        await serve_stateless(
            Service(service.NAME, add, service.self_check),
            settings,
            registry,
            tls=tls,
            tracing=tracing,
            listening=listening,
        )

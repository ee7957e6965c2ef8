"""Composes the decoder process."""

from __future__ import annotations

import asyncio
import os

import grpc.aio
from prometheus_client import CollectorRegistry, ProcessCollector

from proa.api.v1 import decoder_pb2_grpc
from proa.decoder import service
from proa.decoder.settings import DecoderSettings
from proa.rpc import DECODER
from proa.runtime.settings import from_env
from proa.runtime.stateless import Service, serve_stateless
from proa.runtime.tls import open_tls


async def main() -> None:
    await serve_decoder(from_env(DecoderSettings, os.environ))


async def serve_decoder(
    settings: DecoderSettings, *, listening: asyncio.Future[tuple[int, int]] | None = None
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port."""
    tls = open_tls(settings.tls_dir, "PROA_DECODER_TLS_DIR", DECODER)
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    servicer = service.DecoderService(registry, calls_max=settings.calls_max)

    def add(server: grpc.aio.Server) -> None:
        decoder_pb2_grpc.add_DecoderServicer_to_server(  # type: ignore[no-untyped-call]
            servicer, server
        )

    await serve_stateless(
        Service(service.NAME, add, service.self_check),
        settings,
        registry,
        tls=tls,
        listening=listening,
    )

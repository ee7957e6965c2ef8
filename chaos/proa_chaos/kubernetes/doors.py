"""Channels of the runner: to workers and coders as one of them, to frontends as a client."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from proa.api.v1 import frontend_pb2
from proa.client.reports import read_report
from proa.rpc import FRONTEND, WORKER, Channels, ChannelTls, Tls, bearer
from proa.runtime.tls import open_tls

MESSAGE_BYTES_MAX = 64 << 20
CALL_S_MAX = 5.0


@dataclass(frozen=True)
class _AsClient:
    """TLS towards frontends: their certificate has the Service's name, whatever a pod's address."""

    tls: ChannelTls
    version: int = 0

    def channel(self, _role: str) -> ChannelTls:
        return self.tls


class Doors:
    """Open channels by address and role. `services`: folder of the certificate that our services
    show each other; `client`: TLS towards frontends. Errors: EnvironmentLacks, InvalidRequest."""

    def __init__(self, services: Path | None, client: Tls | None, token: str | None) -> None:
        peers = open_tls(services, "PROA_CHAOS_TLS_DIR")
        self._peers = Channels(message_bytes_max=MESSAGE_BYTES_MAX, tls=peers)
        front = _AsClient(client.read()) if client else None
        self._front = Channels(message_bytes_max=MESSAGE_BYTES_MAX, tls=front)
        self._metadata = bearer(token)

    def __call__(self, address: str, role: str = WORKER) -> grpc.aio.Channel:
        return self._front(address, role) if role == FRONTEND else self._peers(address, role)

    async def report(self, address: str) -> frontend_pb2.StatusReport:
        """What the frontend at `address` says now. Errors: those of the call."""
        return await read_report(
            self(address, FRONTEND), timeout_s=CALL_S_MAX, metadata=self._metadata
        )

    async def close(self) -> None:
        await asyncio.gather(self._peers.close(), self._front.close())


def client_tls(folder: Path | None, address: str) -> Tls | None:
    """TLS of a client by the files in `folder`: ca.crt, and tls.crt with tls.key if they are
    there. Whatever address a frontend has, it must be who `address` names."""
    if folder is None:
        return None
    own = (folder / "tls.crt").exists()
    return Tls(
        ca=folder / "ca.crt",
        cert=folder / "tls.crt" if own else None,
        key=folder / "tls.key" if own else None,
        server_name=address.rpartition(":")[0].strip("[]"),
    )

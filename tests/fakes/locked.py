"""Services of this process behind mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from fakes.pki import Authority, secrets_of_roles
from fakes.triton_fake import FakeTriton
from proa import rpc
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.encoder.main import serve_encoder
from proa.encoder.settings import EncoderSettings
from proa.runtime.tls import TlsFiles

MIB = 1 << 20


class Locks:
    """An authority, and the mounted secret of each role."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority("services CA")
        self.folders = secrets_of_roles(folder, self.authority)

    def files(self, role: str) -> TlsFiles:
        return TlsFiles(self.folders[role], f"PROA_{role.upper()}_TLS_DIR", role)

    def worker(self) -> FakeTriton:
        """A fake worker that wants certificates."""
        return FakeTriton(credentials=self.files(rpc.WORKER).server())

    def channels(self, role: str = rpc.FRONTEND) -> rpc.Channels:
        """Channels of a service of `role`."""
        return rpc.Channels(message_bytes_max=MIB, tls=self.files(role))


@contextlib.asynccontextmanager
async def encoder(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Address and admin port of an encoder with the secret in `folder`."""
    settings = EncoderSettings(
        host="127.0.0.1", port=0, admin_port=0, grace_s=0.0, faults=True, tls_dir=folder
    )
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    async with _running(serve_encoder(settings, listening=listening), listening) as found:
        yield found


@contextlib.asynccontextmanager
async def decoder(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """The same for a decoder."""
    settings = DecoderSettings(host="127.0.0.1", port=0, admin_port=0, grace_s=0.0, tls_dir=folder)
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    async with _running(serve_decoder(settings, listening=listening), listening) as found:
        yield found


@contextlib.asynccontextmanager
async def _running(work, listening) -> AsyncIterator[tuple[str, int]]:
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task, listening], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        port, admin_port = listening.result()
        yield f"127.0.0.1:{port}", admin_port
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

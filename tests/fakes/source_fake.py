"""Discovery in the test's hands: any number of frontends follow one source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fakes.triton_fake import FakeTriton
from proa.cluster.endpoints import READY, Endpoint


class FakeSource:
    """`set` tells all followers; before the first `set` nothing is known."""

    def __init__(self, *endpoints: Endpoint) -> None:
        self.endpoints: frozenset[Endpoint] | None = frozenset(endpoints) if endpoints else None
        self._changed = asyncio.Event()

    async def snapshots(self) -> AsyncIterator[frozenset[Endpoint]]:
        told = None
        while True:
            changed = self._changed
            if self.endpoints is not None and self.endpoints != told:
                told = self.endpoints
                yield told
                continue  # it may have changed while the follower had the picture
            await changed.wait()

    def set(self, *endpoints: Endpoint) -> None:
        """This is the whole picture from now on."""
        self.endpoints = frozenset(endpoints)
        self._changed.set()
        self._changed = asyncio.Event()


def worker(
    name: str,
    fake: FakeTriton,
    *,
    role: str = "worker",
    model: str = "digits",
    state: str = READY,
) -> Endpoint:
    """A worker's pod, alone on its node."""
    return Endpoint(name, fake.address, f"node-of-{name}", role, model, state)


def workers(fakes: list[FakeTriton], **more: str) -> list[Endpoint]:
    """Pods w0, w1 and on."""
    return [worker(f"w{i}", fake, **more) for i, fake in enumerate(fakes)]


def peer(name: str, address: str = "127.0.0.1:1", *, role: str = "frontend") -> Endpoint:
    """A pod that serves every model: frontend, encoder or decoder."""
    return Endpoint(name, address, f"node-of-{name}", role, "", READY)

"""A release in a namespace, of fakes: pods that the fake API server knows, their workers, a real
frontend and a real decoder in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.cluster import Frontend, frontend, write_spec
from fakes.kube_fake import FakeKube, Object, fake_kube, kubeconfig, pod
from fakes.source_fake import FakeSource, worker
from fakes.triton_fake import FakeTriton
from proa.cluster.api import ApiAccess
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa_chaos.kubernetes.settings import ChaosSettings

WORKERS = 4
_CONTAINER = {"name": "chaos", "image": "x"}
JOB: Object = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "one"},
    "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [_CONTAINER]}}},
}


@dataclass
class Release:
    """Pods w0 to w3, decoder and frontend, of release `r`, and the Job `one`."""

    kube: FakeKube
    access: ApiAccess
    served: Frontend
    workers: dict[str, FakeTriton]
    source: FakeSource
    specs: Path

    def settings(self, **more: Any) -> ChaosSettings:
        values = {"job": "one", "pod": "one-x", "specs": self.specs, **more}
        return ChaosSettings(Path("-"), "r", self.served.address, **values)

    def events(self) -> list[tuple[str, str]]:
        """Reason and message of each Event so far."""
        found = [o for (kind, _), o in self.kube.objects.items() if kind == "events"]
        found.sort(key=lambda one: int(one["metadata"]["resourceVersion"]))
        return [(one["reason"], one["message"]) for one in found]

    def notes(self) -> dict[str, str]:
        """The annotations of the Job."""
        return dict(self.kube.objects["jobs", "one"]["metadata"].get("annotations", {}))

    def tell(self) -> None:
        """What the controllers would: pods, and the frontend's discovery, are as `workers` say."""
        for name, fake in self.workers.items():
            if ("pods", name) not in self.kube.objects:
                self.kube.put(_pod(name, fake.address, "worker"))
        self.source.set(*(worker(name, fake) for name, fake in self.workers.items()))

    def replacing(self) -> list[str]:
        """From now on a deleted worker comes back under another name. The names deleted."""
        deleted: list[str] = []

        def replace(item: Object) -> None:
            deleted.append(item["metadata"]["name"])
            self.workers[f"new-{len(deleted)}"] = self.workers.pop(deleted[-1])
            self.tell()

        self.kube.on_delete = replace
        return deleted


@contextlib.asynccontextmanager
async def release(folder: Path, *, protection: str = "", **settings: Any) -> AsyncIterator[Release]:
    """`settings`: of the frontend; `protection`: of the spec. Its workers are up."""
    spec = write_spec(folder, protection=protection)
    source = FakeSource()
    async with contextlib.AsyncExitStack() as stack:
        kube = await stack.enter_async_context(fake_kube())
        fakes = [await stack.enter_async_context(FakeTriton()) for _ in range(WORKERS)]
        served = await stack.enter_async_context(
            frontend(specs=str(spec), source=source, canary_s=0.1, **settings)
        )
        decodes = await stack.enter_async_context(decoder())
        kube.put(JOB)
        kube.put(_pod("frontend", served.address, "frontend"))
        kube.put(_pod("decoder", decodes, "decoder"))
        access = kubeconfig(folder, str(kube.url))
        named = {f"w{i}": fake for i, fake in enumerate(fakes)}
        found = Release(kube, access, served, named, source, spec.parent)
        found.tell()
        yield found


@contextlib.asynccontextmanager
async def decoder() -> AsyncIterator[str]:
    """The address of a decoder that takes faults."""
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    settings = DecoderSettings(host="127.0.0.1", port=0, admin_port=0, faults=True)
    task = asyncio.create_task(serve_decoder(settings, listening=listening))
    try:
        yield f"127.0.0.1:{(await listening)[0]}"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _pod(name: str, address: str, role: str) -> Object:
    return pod(name, int(address.rpartition(":")[2]), role=role, node=f"node-of-{name}")

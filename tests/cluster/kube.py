"""kubectl and helm, as far as the tests use them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.settings import Settings

Run = Callable[[Sequence[str], float], Awaitable[str]]

POLL_S = 1.0
# Made by controllers, and gone a little after what they belong to.
DERIVED = {"endpoints", "endpointslices.discovery.k8s.io", "events", "events.events.k8s.io"}
PERSISTENT = {"persistentvolumeclaims"}


class CommandFailed(Exception):
    """A command ended with an error: its words and what it said."""


@dataclass(frozen=True)
class Pod:
    """One pod. `uid` tells it from its successor, which may have its name."""

    name: str
    uid: str
    component: str
    ready: bool
    leaving: bool


async def run(words: Sequence[str], timeout_s: float) -> str:
    """Standard output of a command. Errors: CommandFailed; TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode:
        raise CommandFailed(f"{' '.join(words)}: {err.decode().strip() or out.decode().strip()}")
    return out.decode()


class Kube:
    """A namespace and one release in it. Errors of all: CommandFailed, TimeoutError."""

    def __init__(self, settings: Settings, run: Run = run) -> None:
        self._settings = settings
        self._run = run

    async def kubectl(self, *words: str) -> str:
        s = self._settings
        return await self._run(["kubectl", "--namespace", s.namespace, *words], s.timeout_s)

    async def helm(self, *words: str) -> str:
        s = self._settings
        # helm has its own --timeout; ours only ends a helm that hangs.
        return await self._run(["helm", "--namespace", s.namespace, *words], s.timeout_s + 60)

    async def install(self, chart: str, *values: str) -> None:
        """Install or upgrade, and wait until all is ready. `values`: words of helm's."""
        s = self._settings
        own = ["--set", f"image.registry={s.registry}"]
        if s.tag:
            for image in ("services", "worker", "workerGpu"):
                own += ["--set-string", f"image.{image}.tag={s.tag}"]
        for file in s.values:
            own += ["--values", file]
        waiting = ["--create-namespace", "--wait", "--timeout", f"{s.timeout_s:.0f}s"]
        await self.helm("upgrade", "--install", s.release, chart, *waiting, *own, *values)

    async def uninstall(self) -> None:
        s = self._settings
        await self.helm("uninstall", s.release, "--wait", "--timeout", f"{s.timeout_s:.0f}s")

    async def pods(self, component: str | None = None) -> list[Pod]:
        """Pods of the release's Deployments, those of helm tests left out."""
        selector = f"app.kubernetes.io/instance={self._settings.release}"
        if component is not None:
            selector += f",app.kubernetes.io/component={component}"
        found = json.loads(await self.kubectl("get", "pods", "-l", selector, "-o", "json"))
        pods = [_pod(one) for one in found["items"]]
        return [pod for pod in pods if pod.component != "test"]

    async def delete(self, pod: Pod) -> None:
        """Delete gracefully, and return once it is gone."""
        await self.kubectl("delete", "pod", pod.name, "--wait=true")

    async def settled(self) -> bool:
        """Whether there are pods, and all are ready and stay."""
        pods = await self.pods()
        return bool(pods) and all(pod.ready and not pod.leaving for pod in pods)

    async def wait_settled(self) -> None:
        await self.until(self.settled)

    async def until(self, condition: Callable[[], Awaitable[object]]) -> None:
        """Ask once a second until it is so. Errors: TimeoutError."""
        async with asyncio.timeout(self._settings.timeout_s):
            while True:
                if await condition():
                    return
                await asyncio.sleep(POLL_S)

    async def has_namespace(self) -> bool:
        """Whether the namespace is there: then it is somebody's."""
        words = ("get", "namespace", self._settings.namespace, "--ignore-not-found", "-o", "name")
        return bool((await self.kubectl(*words)).strip())

    async def node_port(self, service: str) -> str:
        """host:port of a Service of type NodePort, at the first node."""
        found = json.loads(await self.kubectl("get", "service", service, "-o", "json"))
        (port,) = (one["nodePort"] for one in found["spec"]["ports"] if one["name"] == "grpc")
        nodes = json.loads(await self.kubectl("get", "nodes", "-o", "json"))["items"]
        addresses = {one["type"]: one["address"] for one in nodes[0]["status"]["addresses"]}
        return f"{addresses.get('ExternalIP') or addresses['InternalIP']}:{port}"

    async def left(self) -> list[str]:
        """Objects of the release that are still there, persistent volume claims aside."""
        words = ("api-resources", "--namespaced", "--verbs=list", "--output=name")
        kinds = set((await self.kubectl(*words)).split()) - DERIVED - PERSISTENT
        selector = f"app.kubernetes.io/instance={self._settings.release}"
        words = ("get", ",".join(sorted(kinds)), "-l", selector, "-o", "name", "--ignore-not-found")
        return (await self.kubectl(*words)).split()


def _pod(found: dict[str, Any]) -> Pod:
    conditions = {c["type"]: c["status"] for c in found["status"].get("conditions", ())}
    meta = found["metadata"]
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        component=meta["labels"].get("app.kubernetes.io/component", ""),
        ready=conditions.get("Ready") == "True",
        leaving="deletionTimestamp" in meta,
    )

"""Pods that are taken away for a while: killed, or evicted from a node, again when they are back.

All of it happens in the runner: a dead one takes nobody away any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Sequence

from proa.cluster.connection import ApiError
from proa.errors import ProaError, Unavailable
from proa_chaos.kubernetes.nodes import Nodes
from proa_chaos.kubernetes.pods import Pod, Pods
from proa_chaos.plan import Hit

AGAIN_S = 0.5
BUDGET = 429


class Removal:
    """The kills and drains of a run. `end` those that were begun, or `close`."""

    def __init__(self, pods: Pods, nodes: Nodes) -> None:
        self._pods = pods
        self._nodes = nodes
        self._known: dict[str, Pod] = {}
        self._going_on: dict[str, asyncio.Task[None]] = {}
        self._cordoned: dict[str, str] = {}

    async def check(self, hits: Sequence[Hit]) -> None:
        """Raise for what would fail later: a cordon that we may not make. Before `kill`."""
        if hits:
            self._known = {pod.name: pod for pod in await self._pods.list()}
        for node in {hit.target.machine for hit in hits if hit.fault.parameters.cordon}:
            await self._nodes.check(node)

    async def kill(self, hit: Hit, ttl_s: float) -> None:
        """Kill the pod that is called as the target is, and for `ttl_s` what replaces it. Errors:
        ApiError (429: its budget)."""
        pods = {one.name: one for one in await self._pods.list()}
        # A stateful set gives the name to the next one.
        pod = pods.get(hit.target.name) or self._known[hit.target.name]
        known = {one.uid for one in pods.values()}
        evict = hit.fault.parameters.how == "evict"
        await self._remove(pod, evict=evict)
        if ttl_s:
            killing = self._kill_again(pod, {*known, pod.uid}, ttl_s, evict=evict)
            self._going_on[hit.id] = asyncio.create_task(killing)

    async def drain(self, hit: Hit, ttl_s: float) -> None:
        """Evict all of the release on the node of the hit, those that budgets hold back as soon as
        they let go, and then what comes to it.

        Errors: Unavailable: `ttl_s` have passed, and somebody is there still; ApiError.
        """
        node, end_s = hit.target.machine, _now_s() + ttl_s
        if hit.fault.parameters.cordon:
            self._cordoned[hit.id] = node  # before it is done: we may not hear of it
            if not await self._nodes.cordon(node, ttl_s):
                del self._cordoned[hit.id]
        while held := await self._evict_all(node):
            if _now_s() + AGAIN_S > end_s:
                name, why = next(iter(held.items()))
                raise Unavailable(
                    f"node {node}: {len(held)} pods were not let go within {ttl_s:g} s:"
                    f" {name}: {why}"
                )
            await asyncio.sleep(AGAIN_S)
        self._going_on[hit.id] = asyncio.create_task(self._drain_again(node, end_s))

    async def end(self, hit: Hit) -> None:
        """End it, if it was begun. Errors: Unavailable: the node stays cordoned."""
        task = self._going_on.pop(hit.id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        node = self._cordoned.get(hit.id)
        if node is not None:
            try:
                await self._nodes.uncordon(node)
            except ProaError as exc:
                raise Unavailable(
                    f"node {node} stays cordoned until the next run, or kubectl uncordon {node}:"
                    f" {exc}"
                ) from exc
            del self._cordoned[hit.id]

    async def close(self) -> None:
        """Take nobody away any more."""
        for task in self._going_on.values():
            task.cancel()
        await asyncio.gather(*self._going_on.values(), return_exceptions=True)

    async def _kill_again(
        self, killed: Pod, gone: Collection[str], ttl_s: float, *, evict: bool
    ) -> None:
        end_s, known = _now_s() + ttl_s, set(gone)
        while _now_s() < end_s:
            try:
                for pod in await self._pods.list():
                    if pod.uid not in known and killed.owner and pod.owner == killed.owner:
                        known.add(pod.uid)
                        await self._remove(pod, evict=evict)
            except ProaError:  # the API server may be away for a moment
                pass
            await asyncio.sleep(AGAIN_S)

    async def _drain_again(self, node: str, end_s: float) -> None:
        while _now_s() < end_s:
            await asyncio.sleep(AGAIN_S)
            with contextlib.suppress(ProaError):
                await self._evict_all(node)

    async def _evict_all(self, node: str) -> dict[str, str]:
        """Whom a budget holds back on `node`, and why."""
        held = {}
        for pod in await self._pods.list():
            if pod.node == node and not pod.leaving:
                try:
                    await self._pods.evict(pod)
                except ApiError as exc:
                    if exc.code != BUDGET:
                        raise
                    held[pod.name] = str(exc)
        return held

    async def _remove(self, pod: Pod, *, evict: bool) -> None:
        await (self._pods.evict(pod) if evict else self._pods.delete(pod))


def _now_s() -> float:
    return asyncio.get_running_loop().time()

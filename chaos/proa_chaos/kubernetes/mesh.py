"""Faults that Chaos Mesh acts out, where it is installed: an object for each hit.

It is for what takes privilege: the network itself, and CPUs of other machines. Whom a fault hits
was chosen before (seeded, guarded, in the journal), so an object names its pods instead of choosing
again. Its `duration` is the time to live; the Job owns it, so it goes with the Job at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from proa.cluster.connection import ApiError, Call, Connection
from proa.errors import NotSupported, Unavailable
from proa_chaos.experiment import CHAOS_MESH, Fault
from proa_chaos.plan import Hit
from proa_chaos.selection import Target

GROUP, VERSION = "chaos-mesh.org", "v1alpha1"
KINDS = {
    "slow": "NetworkChaos",
    "partition": "NetworkChaos",
    "kill": "PodChaos",
    "cpu-hog": "StressChaos",
}
LOOK_S = 0.2
WAIT_S_MAX = 15.0
NOT_FOUND = 404

Object = dict[str, Any]


def resource(fault: Fault) -> str:
    """The resource of the API by which Chaos Mesh acts out `fault`."""
    return KINDS[fault.action].lower()


def by_mesh(fault: Fault) -> bool:
    """Whether Chaos Mesh is to act it out."""
    return fault.backend == CHAOS_MESH


class Mesh:
    """`prefix`: of the objects' names, unique for a run; `owner`: an ownerReference, or none;
    `wait_s_max`: for Chaos Mesh to inject, or to recover."""

    def __init__(
        self, connection: Connection, namespace: str, prefix: str, *, wait_s_max: float = WAIT_S_MAX
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._prefix = prefix
        self._wait_s_max = wait_s_max
        self.owner: Mapping[str, Any] | None = None

    async def check(self, hits: Sequence[Hit]) -> None:
        """Errors: NotSupported (Chaos Mesh is not installed, or cannot do that); ApiError."""
        for hit in hits:
            _check(hit)
        wanted = {resource(hit.fault) for hit in hits}
        if not wanted:
            return
        try:
            found = await self._connection.answer(Call("get", GROUP, "", "", version=VERSION))
        except ApiError as exc:
            if exc.code != NOT_FOUND:
                raise
            raise NotSupported(
                f"backend: chaos-mesh: Chaos Mesh is not installed ({exc}); install it, or leave"
                " the key out"
            ) from exc
        there = {one.get("name") for one in found.get("resources") or ()}
        if missing := sorted(wanted - there):
            raise NotSupported(f"backend: chaos-mesh: {GROUP}/{VERSION} has no {missing[0]}")

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        """Make the object and wait until the fault acts. Errors: ApiError; Unavailable when Chaos
        Mesh does not do it in time."""
        await self._ask("create", hit, body=self.object(hit, ttl_s))
        await self._until(hit, "inject")

    async def end(self, hit: Hit) -> None:
        """Delete the object and wait until it has gone, which is when the pods have recovered.
        Errors: as `inject`."""
        if await self._look("delete", hit) is not None:
            await self._until(hit, "recover")

    def object(self, hit: Hit, ttl_s: float) -> Object:
        """What is created for `hit`."""
        meta: Object = {
            "name": self._name(hit),
            "namespace": self._namespace,
            "labels": {"app.kubernetes.io/managed-by": "proa-chaos"},
        }
        if self.owner:
            meta["ownerReferences"] = [dict(self.owner)]
        spec: Object = {"mode": "all", "selector": _selector(hit.target), **_what(hit, ttl_s)}
        if ttl_s:
            spec["duration"] = f"{max(1, round(ttl_s * 1000))}ms"
        kind = KINDS[hit.fault.action]
        return {"apiVersion": f"{GROUP}/{VERSION}", "kind": kind, "metadata": meta, "spec": spec}

    async def _until(self, hit: Hit, what: str) -> None:
        end_s = asyncio.get_running_loop().time() + self._wait_s_max
        while (found := await self._look("get", hit)) is not None:
            # One that lasts shorter than we look may have recovered already.
            if what == "inject" and _true(found) & {"AllInjected", "AllRecovered"}:
                return
            if asyncio.get_running_loop().time() > end_s:
                where = f"kubectl -n {self._namespace} describe {resource(hit.fault)}"
                raise Unavailable(
                    f"{hit.text}: Chaos Mesh did not {what} within {self._wait_s_max:g} s:"
                    f" {where} {self._name(hit)}"
                )
            await asyncio.sleep(LOOK_S)
        if what == "inject":
            raise Unavailable(f"{hit.text}: somebody deleted {self._name(hit)}")

    async def _look(self, verb: str, hit: Hit) -> Mapping[str, Any] | None:
        """None: there is no such object."""
        try:
            return await self._ask(verb, hit, self._name(hit))
        except ApiError as exc:
            if exc.code != NOT_FOUND:
                raise
            return None

    async def _ask(
        self, verb: str, hit: Hit, name: str = "", body: Object | None = None
    ) -> Mapping[str, Any]:
        return await self._connection.answer(
            Call(
                verb, GROUP, resource(hit.fault), self._namespace, name, body=body, version=VERSION
            )
        )

    def _name(self, hit: Hit) -> str:
        return f"{self._prefix}-{hit.id.replace('.', '-')}"


def _what(hit: Hit, ttl_s: float) -> Object:
    """The keys of `spec` that say what is done."""
    parameters = hit.fault.parameters
    match hit.fault.action:
        case "slow":
            latency = f"{parameters.delay_ms}ms"
            delay = {"latency": latency, "jitter": "0ms", "correlation": "0"}
            return {"action": "delay", "direction": "to", "delay": delay}
        case "partition":
            assert hit.peer is not None
            target = {"mode": "all", "selector": _selector(hit.peer)}
            return {"action": "partition", "direction": "both", "target": target}
        case "kill":
            return {"action": "pod-failure"} if ttl_s else {"action": "pod-kill", "gracePeriod": 0}
    assert hit.fault.action == "cpu-hog", hit.fault.action
    return {"stressors": {"cpu": {"workers": parameters.workers, "load": parameters.load}}}


def _selector(target: Target) -> Object:
    return {"namespaces": [target.namespace], "pods": {target.namespace: [target.name]}}


def _check(hit: Hit) -> None:
    parameters = hit.fault.parameters
    if parameters.program or parameters.probability < 1.0:
        raise NotSupported(f"{hit.text}: Chaos Mesh knows no programs and no share of the calls")
    if parameters.how == "evict":
        raise NotSupported(f"{hit.text}: Chaos Mesh does not evict; leave out `backend`")


def _true(item: Mapping[str, Any]) -> set[str]:
    """The conditions that hold."""
    status = item.get("status")
    conditions = status.get("conditions") if isinstance(status, Mapping) else None
    return {str(c.get("type")) for c in conditions or () if c.get("status") == "True"}

"""The store of one release in one namespace: its pods are the targets, named by the coordinator's
report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proa.api.v1.store_pb2 import StoreReport
from proa.errors import ProaError, Unavailable
from proa_chaos.inband import InBand
from proa_chaos.kubernetes.doors import Doors
from proa_chaos.kubernetes.faults import PodFaults, Ways
from proa_chaos.kubernetes.pods import Pod
from proa_chaos.plan import Hit
from proa_chaos.selection import COORDINATOR_ROLE, SHARD_ROLE, Target

ROLES = frozenset({SHARD_ROLE, COORDINATOR_ROLE})


class KubernetesStore:
    """`address`: the coordinators' Service. `ways`: to pods of ROLES. See `StoreBackend`."""

    name = "kubernetes"

    def __init__(self, ways: Ways, doors: Doors, address: str, *, seed: int) -> None:
        self.address = address
        self._pods, self._doors = ways.pods, doors
        self._faults = PodFaults(ways, InBand(doors, ways.prefix, seed))
        self._least: Counter[tuple[str, str]] = Counter()

    async def targets(self, report: StoreReport) -> list[Target]:
        pods = await self._pods.list()
        self._least = Counter(pod.pool for pod in pods if not pod.waits)
        shards = {pod.ordinal: pod for pod in pods if pod.pool[0] == SHARD_ROLE and pod.address}
        missing = [str(one.shard) for one in report.shards if one.shard not in shards]
        if missing:
            raise Unavailable(f"there are no pods of the shards {', '.join(missing)}")
        others = [pod for pod in pods if pod.pool[0] == COORDINATOR_ROLE]
        return [
            *(self._target(shards[one.shard], one.domain) for one in report.shards),
            *(self._target(pod, pod.name) for pod in others),
        ]

    async def waiting_for(self) -> list[str]:
        try:
            pods = await self._pods.list()
        except ProaError as exc:
            return [str(exc)]
        found = [f"{pod.name} {pod.waits}" for pod in pods if pod.waits]
        have = Counter(pod.pool for pod in pods if not pod.waits)
        return found + [
            f"{have[pool]} of {least} pods of {pool[0]} are ready"
            for pool, least in self._least.items()
            if have[pool] < least
        ]

    async def prepare(self, hits: Sequence[Hit]) -> None:
        await self._faults.prepare(hits)

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        await self._faults.inject(hit, ttl_s)

    async def end(self, hit: Hit) -> None:
        await self._faults.end(hit)

    async def close(self) -> None:
        await self._faults.close()
        await self._doors.close()

    def _target(self, pod: Pod, domain: str) -> Target:
        return Target(
            pod.name, domain, pod.address, self._pods.namespace, pod.labels, pod.node or domain
        )

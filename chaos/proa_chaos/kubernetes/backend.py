"""One release in one namespace: its pods are the targets, the API and the frontend name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proa.api.v1 import frontend_pb2
from proa.errors import NotSupported, ProaError, Unavailable
from proa_chaos.blast import Pool, worker_pool
from proa_chaos.experiment import PROTECTIONS
from proa_chaos.inband import InBand
from proa_chaos.kubernetes.doors import Doors
from proa_chaos.kubernetes.faults import PodFaults, Ways
from proa_chaos.kubernetes.pods import Pod
from proa_chaos.plan import Hit
from proa_chaos.selection import MODEL, ROLE, Target
from proa_chaos.workers import in_quarantine, not_up, protection_of

WORKER_ROLES = ("worker", "parity-worker")
OTHER_ROLES = {"encoder": 0, "decoder": 0, "frontend": 1}  # and how many must stay ready


class KubernetesBackend:
    """`address`: the frontend's Service. `ways`: to pods of the roles of serving. `parallel`: see
    `PodFaults`. `code`: k and r of the model, for the guard."""

    name = "kubernetes"

    def __init__(
        self,
        ways: Ways,
        doors: Doors,
        address: str,
        *,
        seed: int,
        token: str | None = None,
        parallel: bool = False,
    ) -> None:
        self.address = address
        self._pods, self._doors = ways.pods, doors
        self._in_band = InBand(doors, ways.prefix, seed, token=token)
        self._faults = PodFaults(
            ways, self._in_band, parallel=parallel, check_known=self._check_known
        )
        self.code = (1, 1)
        self._by_name: dict[str, Pod] = {}
        self._least: Counter[tuple[str, str]] = Counter()
        self._strange: set[str] = set()
        self._frontends: list[Target] = []

    async def models(self) -> tuple[str, ...]:
        """The models that the frontend serves."""
        return tuple(model.name for model in (await self._doors.report(self.address)).models)

    async def targets(self, model: str) -> list[Target]:
        found = [pod for pod in await self._pods.list() if pod.address and _concerns(pod, model)]
        # What goes missing later is a pod that has not come back.
        self._least = Counter(pod.pool for pod in found if not pod.waits)
        self._by_name = {pod.name: pod for pod in found}
        status = await self._status(model)
        domains = {worker.name: worker.domain for worker in status.workers}
        self._strange = _worker_names(found) - domains.keys()
        for role in OTHER_ROLES:
            nodes = {pod.node for pod in found if pod.pool[0] == role}
            if len(nodes) > 1:
                domains |= {pod.name: pod.node for pod in found if pod.pool[0] == role}
        targets = [
            self._target(pod, domains.get(pod.name, pod.name), protection_of(status))
            for pod in found
        ]
        self._frontends = [target for target in targets if target.role == "frontend"]
        return targets

    async def pools(self, model: str) -> list[Pool]:
        targets = await self.targets(model)
        up = {w.name for w in (await self._status(model)).workers if w.state == "up"}
        ready = frozenset(
            name
            for name, pod in self._by_name.items()
            if not pod.waits and (name in up or pod.pool[0] not in WORKER_ROLES)
        )
        k, r = self.code
        workers = tuple(target for target in targets if target.model == model)
        pools = [worker_pool(model, workers, ready, k, r)]
        for role, least in OTHER_ROLES.items():
            members = tuple(target for target in targets if target.role == role)
            if members:
                pools.append(Pool(f"the {role}s", members, ready, max(r, 1), least))
        return pools

    async def waiting_for(self, model: str) -> list[str]:
        try:
            pods = [pod for pod in await self._pods.list() if _concerns(pod, model)]
            status = await self._status(model)
        except ProaError as exc:
            return [str(exc)]
        found = [f"{pod.name} {pod.waits}" for pod in pods if pod.waits]
        have = Counter(pod.pool for pod in pods if not pod.waits)
        for pool, least in self._least.items():
            if have[pool] < least:
                found.append(f"{have[pool]} of {least} pods of {' '.join(pool).strip()} are ready")
        found += not_up(status)
        missing = len(_worker_names(pods)) - len(status.workers)
        return found + ([f"the frontend does not know {missing} workers"] if missing > 0 else [])

    async def quarantined(self, model: str) -> list[str]:
        return in_quarantine(await self._status(model))

    async def prepare(self, hits: Sequence[Hit]) -> None:
        await self._faults.prepare(hits)

    def _check_known(self, hit: Hit) -> None:
        """A partition names the worker as the frontend does: by its pod, unless found by DNS."""
        for side in (hit.target, hit.peer):
            if hit.fault.action == "partition" and side is not None and side.name in self._strange:
                raise NotSupported(
                    f"{hit.text}: the frontend does not know {side.name} by its pod's name; that"
                    " takes discovery.mode kubernetes"
                )

    async def inject(self, hit: Hit, ttl_s: float) -> None:
        await self._faults.inject(hit, ttl_s)

    async def end(self, hit: Hit) -> None:
        await self._faults.end(hit)

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        """To every frontend that was there when the targets were chosen: each has watchers."""
        await self._in_band.announce(self._frontends, hit, ttl_s)

    async def close(self) -> None:
        await self._faults.close()
        await self._doors.close()

    async def _status(self, model: str) -> frontend_pb2.ModelStatus:
        for found in (await self._doors.report(self.address)).models:
            if found.name == model:
                return found
        raise Unavailable(f"the frontend reports nothing of model {model!r}")

    def _target(self, pod: Pod, domain: str, protection: str) -> Target:
        return Target(
            pod.name, domain, pod.address, self._pods.namespace, pod.labels, pod.node or domain,
            protection if pod.pool[0] in WORKER_ROLES else PROTECTIONS[0],
        )  # fmt: skip


def _concerns(pod: Pod, model: str) -> bool:
    role, its = pod.labels.get(ROLE, ""), pod.labels.get(MODEL, "")
    return role in OTHER_ROLES or (role in WORKER_ROLES and its == model)


def _worker_names(pods: Sequence[Pod]) -> set[str]:
    return {pod.name for pod in pods if pod.pool[0] in WORKER_ROLES and not pod.waits}

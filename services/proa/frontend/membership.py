"""Who is where: workers, coders and fellow frontends, from the settings or from discovery."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from proa.cluster.endpoints import READY, Endpoint
from proa.dispatch.events import DEPLOYED, PARITY
from proa.frontend.addresses import WORKERS_MAX, WorkerAddress
from proa.spec import CodedModel

log = logging.getLogger(__name__)

_BOTH = frozenset((DEPLOYED, PARITY))
# Roles of endpoints by `redundancy.pool`: a dedicated pool leaves parity to its own workers.
_ROLES = {
    "shared": {"worker": _BOTH, "parity-worker": frozenset((PARITY,))},
    "dedicated": {"worker": frozenset((DEPLOYED,)), "parity-worker": frozenset((PARITY,))},
}


@dataclass(frozen=True)
class View:
    """One picture of the world. `fixed`: workers that the settings name, by model; `endpoints`:
    what discovery sees; `frontends`: how many share the workers, `index`: which one is this;
    `domain`: what fails together, see `domains_are_pods`."""

    fixed: Mapping[str, tuple[WorkerAddress, ...]] = field(default_factory=dict)
    endpoints: frozenset[Endpoint] = frozenset()
    encoders: tuple[str, ...] = ()
    decoders: tuple[str, ...] = ()
    frontends: int = 1
    index: int = 0
    domain: str = "auto"

    def workers_of(self, spec: CodedModel) -> tuple[WorkerAddress, ...]:
        """The workers of a model that may get work. A pod that is about to leave is not among
        them: whoever had it finishes what runs there."""
        if spec.name in self.fixed:
            return self.fixed[spec.name]
        if spec.model.endpoint is not None:
            address = spec.model.endpoint.partition("/")[0]
            return (WorkerAddress(address, address, address, frozenset((DEPLOYED,))),)
        roles = _ROLES[spec.redundancy.pool]
        found = [
            WorkerAddress(e.name, e.address, e.domain, roles[e.role])
            for e in _one_each(self.endpoints)
            if e.model == spec.name and e.role in roles
        ]
        if len(found) > WORKERS_MAX:
            log.error(
                "model %s has %d workers; the limit is %d, the others are left out",
                *(spec.name, len(found), WORKERS_MAX),
            )
        if self.domains_are_pods(spec, {worker.domain for worker in found}):
            found = [replace(worker, domain=worker.name) for worker in found]
        return tuple(found[:WORKERS_MAX])

    def domains_are_pods(self, spec: CodedModel, nodes: Collection[str]) -> bool:
        """Whether each pod is its own failure domain, although pods share `nodes`.

        `auto`: where there are too few nodes for a coding group. Codes then guard against slow and
        dead pods, not against the loss of a node.
        """
        if self.domain != "auto":
            return self.domain == "pod"
        red = spec.redundancy
        return len(nodes) < (red.k + red.r if spec.has_parity else 2)


def view_of(endpoints: frozenset[Endpoint], pod: str | None, domain: str = "auto") -> View:
    """The view of the frontend in `pod` on what discovery sees."""
    ready = list(_one_each(endpoints))
    # One that is about to leave still serves: it counts until it is gone.
    frontends = sorted({e.name for e in endpoints if e.role == "frontend"} or {pod or ""})
    return View(
        endpoints=endpoints,
        encoders=tuple(e.address for e in ready if e.role == "encoder"),
        decoders=tuple(e.address for e in ready if e.role == "decoder"),
        frontends=len(frontends),
        index=_index(frontends, pod or ""),
        domain=domain,
    )


def _one_each(endpoints: Iterable[Endpoint]) -> Iterable[Endpoint]:
    """The ready ones by name; of a pod with several addresses (two families), the first."""
    ready = sorted(
        (e for e in endpoints if e.state == READY), key=lambda e: (e.role, e.name, e.address)
    )
    return reversed({(e.role, e.model, e.name): e for e in reversed(ready)}.values())


def _index(frontends: list[str], pod: str) -> int:
    """Which of `frontends` is `pod`. One that is not listed (it is not ready yet) takes any place:
    two at one place prefer the same workers, which costs a little and breaks nothing."""
    if pod in frontends:
        return frontends.index(pod)
    return zlib.crc32(pod.encode()) % len(frontends)

"""A store, whose rows are trained while its shards are broken."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from proa.errors import Unavailable
from proa.store.access import Access
from proa_chaos.backend import StoreBackend
from proa_chaos.blast import Pool, shard_pool
from proa_chaos.experiment import PHASES, Experiment
from proa_chaos.measures import Sample
from proa_chaos.plan import Hit
from proa_chaos.selection import COORDINATOR_ROLE, SHARD_ROLE, Target
from proa_chaos.store.coordinator import Coordinator
from proa_chaos.store.measures import StoreObservations
from proa_chaos.store.training import Training

AFTER = PHASES[-1]
_IDS_SHOWN = 12


class Store:
    """The store of `backend`. `access`: ours to it. See `System`."""

    def __init__(
        self,
        experiment: Experiment,
        backend: StoreBackend,
        *,
        seed: int = 0,
        access: Access | None = None,
    ) -> None:
        workload, access = experiment.workload, access or Access()
        self.place = backend
        self.seen = StoreObservations(workload.deadline_ms / 1000.0)
        self._coordinator = Coordinator(backend.address, access.tls_dir)
        self._training = Training(workload, backend.address, access, self.seen, seed)
        self._workload = workload
        self.subject = f"table {self._training.table.name}"

    async def targets(self) -> list[Target]:
        return await self.place.targets(await self._coordinator.report())

    async def pools(self) -> list[Pool]:
        report = await self._coordinator.report()
        parts = [t for t in await self.place.targets(report) if t.role != COORDINATOR_ROLE]
        shards = [target for target in parts if target.role == SHARD_ROLE]
        ready = frozenset(
            target.name
            for target, one in zip(shards, report.shards, strict=True)
            if one.state == "open"
        )
        return [shard_pool(parts, ready, report.k, report.r)]

    async def waiting_for(self, *, after: bool) -> list[str]:  # noqa: ARG002  # of the protocol
        """The same before and after: lost rows are not waited for, nothing brings them back. As
        long as there are any, agents that had them are not ready, though they serve."""
        waiting, lost = await self._coordinator.waiting_for()
        return waiting if waiting or lost else await self.place.waiting_for()

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        async with self._training.begun() as lost:
            if lost:
                await self._whole()
            async with self._coordinator.decoded(self._count):
                yield

    def _count(self, rows: int) -> None:
        self.seen.rows_decoded += rows

    async def load(self, phase: str, run_start_s: float) -> None:
        await self._training.phase(phase, run_start_s)

    async def phase_over(self, phase: str) -> None:
        """All rows are compared in the end."""
        if phase == AFTER:
            await self._training.compare(AFTER)

    async def recovered(self, notes: list[str]) -> None:
        """Compare all rows, flipped ones among them; set those anew that are lost; then scrub."""
        await self._training.compare(AFTER)
        lost = await self._training.restore()
        if lost:
            some = ", ".join(map(str, lost[:_IDS_SHOWN])) + (", ..." * (len(lost) > _IDS_SHOWN))
            notes.append(f"lost: {len(lost)} rows of {self.subject}: ids {some}; set anew")
            await self._whole()
        self.seen.scrubbed = await self._coordinator.scrub(notes)

    async def _whole(self) -> None:
        """Parity of rows that were set anew is collected. Errors: Unavailable."""
        waiting, _ = await self._coordinator.waiting_for()
        if waiting:
            raise Unavailable(f"after lost rows were set anew: {'; '.join(waiting)}")

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        """Nobody watches a store."""

    def rate_text(self, _phase: str) -> str:
        load = self._workload.store
        assert load is not None
        rate = f"{load.rate_hz:g} steps/s each" if load.rate_hz else "as fast as it goes"
        return f"{load.workers} workers, {load.batch} rows a step, {rate}"

    def line(self, samples: list[Sample]) -> str:
        p50, worst = (self.seen.over(m, samples) for m in ("p50Ms", "maxMs"))
        failed = sum(not s.ok for s in samples)
        return (
            f"{len(samples):4d} steps  p50 {p50 or 0:6.1f}  max {worst or 0:6.1f} ms"
            f"  failed {failed}  decoded {self.seen.rows_decoded}"
        )

"""A model that is served, under open-loop load."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from proa.client import AsyncClient, Tls
from proa.errors import Unavailable
from proa_chaos.backend import ServingBackend
from proa_chaos.blast import Pool
from proa_chaos.experiment import Experiment
from proa_chaos.load import Load
from proa_chaos.measures import QUARANTINED, Sample, ServingObservations
from proa_chaos.plan import Hit
from proa_chaos.queries import prepare_queries
from proa_chaos.runner import Runner
from proa_chaos.selection import Target


class Serving:
    """`model` of `backend`. `tls`, `token`: of the client that asks. See `System`."""

    def __init__(
        self,
        experiment: Experiment,
        backend: ServingBackend,
        model: str,
        *,
        seed: int = 0,
        tls: Tls | None = None,
        token: str | None = None,
    ) -> None:
        self._workload, self._hypothesis = experiment.workload, experiment.hypothesis
        self.place = backend
        self.model, self.subject = model, f"model {model}"
        self.seen = ServingObservations(experiment.workload.deadline_ms / 1000.0)
        self._seed = seed
        self._tls, self._token = tls, token
        self._load: Load | None = None

    async def targets(self) -> list[Target]:
        return await self.place.targets(self.model)

    async def pools(self) -> list[Pool]:
        return await self.place.pools(self.model)

    async def waiting_for(self, *, after: bool) -> list[str]:
        """After the faults a worker in quarantine is not missing: it is out for longer than any
        experiment."""
        waiting = await self.place.waiting_for(self.model)
        if not waiting or not after:
            return waiting
        try:
            out = await self.place.quarantined(self.model)
        except Unavailable:  # the frontend itself is missing, as `waiting` says
            return waiting
        return [line for line in waiting if line not in out]

    @contextlib.asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        workload = self._workload
        async with AsyncClient(
            self.place.address,
            deadline_s=self.seen.deadline_s,
            exact=workload.exact,
            retry=False,  # what is lost is to be seen
            tls=self._tls,
            token=self._token,
        ) as client:
            queries = await prepare_queries(client, self.model, workload, self._seed)
            self._load = Load(client, self.model, workload, queries, self.seen, self._seed)
            yield

    async def load(self, phase: str, run_start_s: float) -> None:
        assert self._load is not None, "not connected"
        await self._load.run(phase, run_start_s)

    async def phase_over(self, phase: str) -> None:
        """Count who is in quarantine, where a probe asks for it: a frontend that is away would
        keep us waiting."""
        if any(probe.measure == QUARANTINED for probe in self._hypothesis):
            with contextlib.suppress(Unavailable):  # not measured, so not met
                self.seen.quarantined[phase] = len(await self.place.quarantined(self.model))

    async def recovered(self, notes: list[str]) -> None:
        """Requests show everything."""

    async def announce(self, hit: Hit, ttl_s: float) -> None:
        await self.place.announce(hit, ttl_s)

    def rate_text(self, phase: str) -> str:
        return f"{self._workload.rate_in(phase):g} requests/s"

    def line(self, samples: list[Sample]) -> str:
        p50, p99 = (self.seen.over(m, samples) for m in ("p50Ms", "p99Ms"))
        failed = sum(not s.ok for s in samples)
        rescued = sum(s.source not in ("", "worker") for s in samples)
        return (
            f"{len(samples):4d} requests  p50 {p50 or 0:6.1f}  p99 {p99 or 0:6.1f} ms"
            f"  failed {failed}  rescued {rescued}"
        )


def serving_runner(
    experiment: Experiment,
    backend: ServingBackend,
    model: str,
    *,
    seed: int = 0,
    tls: Tls | None = None,
    token: str | None = None,
    **options: Any,
) -> Runner:
    """A run of `experiment` on `model`. `options`: of `Runner`."""
    system = Serving(experiment, backend, model, seed=seed, tls=tls, token=token)
    return Runner(experiment, system, seed=seed, **options)

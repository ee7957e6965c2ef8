"""The workload of one phase: open-loop requests, each turned into a sample when it is done."""

from __future__ import annotations

import asyncio

from proa.client import AsyncClient
from proa.errors import ProaError
from proa.load import DROPPED, Outcome, poisson_schedule, run_open_loop
from proa_chaos.experiment import PHASES, Workload
from proa_chaos.measures import REPAIRED, Observations, Sample
from proa_chaos.queries import Queries

# Of a request that was never sent, because inflightMax were open.
NOT_SENT = "NOT_SENT"
ERROR_CHARS_MAX = 300


class Load:
    """Asks `model`; what came of it goes to `seen` at once, so that guards can look."""

    def __init__(
        self, client: AsyncClient, model: str, workload: Workload, queries: Queries,
        seen: Observations, seed: int,
    ) -> None:  # fmt: skip
        self._client = client
        self._model = model
        self._workload = workload
        self._queries = queries
        self._seen = seen
        self._seed = seed

    async def run(self, phase: str, run_start_s: float) -> None:
        """One phase, from now on. `run_start_s`: loop time of the run's start."""
        workload = self._workload
        begin_s = asyncio.get_running_loop().time() - run_start_s
        schedule = poisson_schedule(
            workload.rate_in(phase), workload.length_s(phase), self._seed * 3 + PHASES.index(phase)
        )

        async def send(index: int) -> Outcome:
            at_s = begin_s + float(schedule[index])
            sample = await self._ask(index, phase, at_s, run_start_s)
            self._seen.samples.append(sample)
            return Outcome(sample.ok)

        records = await run_open_loop(
            send, schedule, inflight_max=workload.inflight_max, start_s=run_start_s + begin_s
        )
        self._seen.samples += [
            Sample(phase, begin_s + r.intended_s, r.latency_s, status=NOT_SENT, error=DROPPED)
            for r in records
            if r.error == DROPPED
        ]

    async def _ask(self, index: int, phase: str, at_s: float, run_start_s: float) -> Sample:
        loop = asyncio.get_running_loop()
        try:
            answer = await self._client.infer(
                self._model, self._queries.inputs[index % len(self._queries)]
            )
        except ProaError as exc:
            text = f"{type(exc).__name__}: {exc}"[:ERROR_CHARS_MAX]
            latency_s = loop.time() - run_start_s - at_s
            return Sample(phase, at_s, latency_s, status=exc.status, error=text)
        return Sample(
            phase, at_s, loop.time() - run_start_s - at_s,
            source=answer.source,
            wrong=self._queries.is_wrong(index, answer),
            right=self._queries.is_right(index, answer),
            repaired=answer.abft == REPAIRED,
        )  # fmt: skip

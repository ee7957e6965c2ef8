"""`proa demo`: train, serve, make workers slow, kill one, and show what each policy made of it."""

from __future__ import annotations

import asyncio
import gc
import json as jsonlib
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from proa.client import AsyncClient
from proa.demo.records import FaultWindow, Report, ReportConfig, RequestRecord
from proa.demo.report import build_report, print_table, to_json, write_report
from proa.demo.scenario import (
    DEADLINE_S,
    RATE_HZ,
    SERVICE_MS,
    WORKERS,
    Contender,
    Scenario,
    make_scenario,
)
from proa.demo.stage import Stage, Work
from proa.demo.verdict import caution, promises
from proa.load import Outcome, Record, poisson_schedule, run_open_loop
from proa.local.embedded import embedded
from proa.local.topology import Options
from proa.train import HeldOut, held_out, train_digits

INFLIGHT_MAX = 2000
COLUMNS = 116
# fp32 on the same machine in another batch position may differ in the last bits.
RTOL, ATOL = 1e-3, 1e-4


@dataclass
class Runs:
    """What came of the runs, over all policies."""

    records: list[RequestRecord] = field(default_factory=list)
    windows: list[FaultWindow] = field(default_factory=list)
    extra_work: dict[tuple[str, str], float] = field(default_factory=dict)


def main(*, quick: bool, out: Path, seed: int, json: bool) -> int:
    """Run the demo; the exit code: 1 if an answer was wrong and not marked as reconstructed.

    Report, spec and packages are left in `out`.
    """
    console = Console(stderr=json)
    if not console.is_terminal:
        console = Console(stderr=json, width=COLUMNS)  # a file or a pipe has no width to respect
    started = time.monotonic()
    console.print("[bold]1/3[/] training a model and its parity model on handwritten digits …")
    spec = train_digits(out, ks=(2,), seed=seed, quick=quick, progress=not json)
    console.print(f"[bold]2/3[/] starting {WORKERS} Triton workers, encoder, decoder, frontend …")
    scenario = make_scenario(seed=seed, quick=quick)
    report = asyncio.run(play(scenario, spec, out, console))
    console.print("[bold]3/3[/] writing the report …")
    facts = {**report.config.facts, "seconds": round(time.monotonic() - started, 1)}
    report = replace(report, config=replace(report.config, facts=facts))
    paths = write_report(report, out)
    if json:
        sys.stdout.write(jsonlib.dumps(to_json(report)) + "\n")
    else:
        print_table(report, console)
        _print_promises(report, console)
        console.print(f"picture and timeline: {paths[1]}")
        console.print(f"serve this model yourself: proa up {spec} --port 8001")
    return 1 if any(run.wrong for run in report.runs) else 0


def _print_promises(report: Report, console: Console) -> None:
    """Timings depend on the machine, so a missed one is shown and does not fail the demo."""
    for promise in promises(report):
        verdict = "[green]met[/]   " if promise.met else "[red]missed[/]"
        console.print(f"{verdict} {promise.what}: {promise.measured} ({promise.limit})")
    if few := caution(report):
        console.print(f"[yellow]note[/]   {few}")


def _versions() -> Mapping[str, str]:
    names = ("proa", "nvidia-pytriton", "torch", "grpcio", "numpy")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


async def play(scenario: Scenario, spec: Path, out: Path, console: Console) -> Report:
    """Each policy of the scenario through all phases, on one running system.

    spec: of the digits' model, trained into `out`.
    """
    options = Options(
        run_dir=out / "run",
        port=0,
        admin_port=0,
        workers=WORKERS,
        faults=True,
        service_ms=SERVICE_MS,
    )
    runs = Runs()
    with (out / "processes.log").open("w", encoding="utf-8") as log:

        def sink(name: str, line: str) -> None:
            log.write(f"{name} | {line}\n")

        async with embedded([spec], options, sink=sink) as running:
            await running.supervisor.ready()
            stage = Stage(running, out)
            try:
                for contender in scenario.in_turn:
                    await stage.use(contender, spec)
                    await _Run(scenario, contender, stage, held_out(out), runs).play(console)
            finally:
                await stage.close()
    config = ReportConfig(
        policies={c.name: c.label for c in scenario.contenders},
        phases=scenario.phases,
        deadline_s=DEADLINE_S,
        facts={**scenario.facts, **_versions()},
    )
    return build_report(runs.records, runs.windows, runs.extra_work, config)


class _Run:
    """One policy through all phases."""

    def __init__(
        self, scenario: Scenario, contender: Contender, stage: Stage, data: HeldOut, runs: Runs
    ) -> None:
        self._scenario = scenario
        self._policy = contender.name
        self._stage = stage
        self._data = data
        self._runs = runs
        self._order = np.random.default_rng(scenario.seed).permutation(len(data.images))
        self._start = 0.0

    async def play(self, console: Console) -> None:
        """Load, faults and bookkeeping side by side, all from the same start."""
        schedule = poisson_schedule(RATE_HZ, self._scenario.duration_s, self._scenario.seed)
        with _frozen():
            # No retries of the client's own: what a policy loses is to be seen.
            async with AsyncClient(
                self._stage.address, deadline_s=DEADLINE_S, retry=False
            ) as client:
                found = await self._under_load(client, schedule)
        self._runs.records += [self._record(r, float(schedule[r.index])) for r in found]
        failed = sum(1 for r in found if not r.ok)
        console.print(f"    {self._policy:<17} {len(schedule)} requests, {failed} failed")

    async def _under_load(
        self, client: AsyncClient, schedule: NDArray[np.float64]
    ) -> Sequence[Record]:
        async def send(index: int) -> Outcome:
            answer = await client.infer("digits", {"image": self._image(index)})
            return Outcome(True, answer.source, "", answer["logits"])

        self._start = asyncio.get_running_loop().time() + 0.1
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._slow())
            tasks.create_task(self._kill())
            tasks.create_task(self._account())
            load = tasks.create_task(
                run_open_loop(send, schedule, inflight_max=INFLIGHT_MAX, start_s=self._start)
            )
        return load.result()

    def _which(self, index: int) -> int:
        return int(self._order[index % len(self._order)])

    def _image(self, index: int) -> NDArray[np.float32]:
        which = self._which(index)
        return self._data.images[which : which + 1]

    def _record(self, record: Record, intended_s: float) -> RequestRecord:
        """What the answer was worth: compared with the label and with the offline model."""
        which = self._which(record.index)
        correct: bool | None = None
        wrong = False
        if record.ok:
            logits = np.asarray(record.value, dtype=np.float32)[0]
            correct = bool(logits.argmax() == self._data.labels[which])
            same = np.allclose(logits, self._data.logits[which], rtol=RTOL, atol=ATOL)
            wrong = record.source != "reconstructed" and not same
        return RequestRecord(
            policy=self._policy,
            phase=self._scenario.phase_at(intended_s),
            index=record.index,
            intended_s=intended_s,
            latency_s=record.latency_s,
            ok=record.ok,
            source=record.source,
            correct=correct,
            wrong=wrong,
            error=record.error,
        )

    async def _until(self, at_s: float) -> None:
        """Sleep to second `at_s` of the run."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._start + at_s - loop.time()))

    async def _slow(self) -> None:
        for episode in self._scenario.episodes:
            await self._until(episode.start_s)
            await self._stage.make_slow(episode)
            self._window("slow", episode.worker, episode.start_s, episode.end_s)

    async def _kill(self) -> None:
        phase, worker = self._scenario.phase("killed"), self._scenario.killed
        await self._until(phase.start_s)
        self._stage.kill(worker)
        self._window("killed", worker, phase.start_s, phase.end_s)
        await self._until(phase.end_s)
        self._stage.restart(worker)

    def _window(self, kind: str, worker: int, start_s: float, end_s: float) -> None:
        self._runs.windows.append(
            FaultWindow(self._policy, kind, f"worker-{worker}", start_s, end_s)
        )

    async def _account(self) -> None:
        """The extra work of each phase, in percent of its queries."""
        before = await self._stage.work()
        for phase in self._scenario.phases:
            await self._until(phase.end_s)
            after = await self._stage.work()
            self._runs.extra_work[self._policy, phase.name] = _percent(before, after)
            before = after


@contextmanager
def _frozen() -> Iterator[None]:
    """This process has torch, for training: a collection that looks at all of it takes 145 ms, in
    which no request is sent and no answer read."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _percent(before: Work, after: Work) -> float:
    sent = after.sent - before.sent
    return 100.0 * (after.redundant - before.redundant) / sent if sent else 0.0

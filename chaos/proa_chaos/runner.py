"""Runs one experiment: steady state, faults under load, roll-back, steady state again, verdict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from proa.errors import ProaError
from proa_chaos.blast import check_blast
from proa_chaos.events import Event, Tell, tell_nobody
from proa_chaos.experiment import Experiment
from proa_chaos.faults import Faults
from proa_chaos.hypothesis import Finding, judge, judge_window, probes_of
from proa_chaos.plan import Hit, plan
from proa_chaos.result import Phase, Result, Steady, Verdict
from proa_chaos.system import System

READY_S_MAX = 30.0  # for the steady state before
READY_POLL_S = 0.2
TICK_S = 0.25
LOAD_EVENT_S = 1.0
SLACK_S = 120.0


class Broken(Exception):
    """The run ends here with a verdict."""

    def __init__(self, verdict: Verdict, step: str) -> None:
        super().__init__(step)
        self.verdict = verdict
        self.step = step


class Runner:
    """One run of `experiment` on `system`. `force`: whatever it breaks. `ready_s_max`: patience at
    the start. `slack_s`: how much longer than its phases and its recovery it may take. Set
    `stopped_by` before you cancel it to say why.

    `run` returns a Result whatever happens once it has begun, and leaves no fault behind. Before
    that it raises: InvalidRequest (a selector that matches nothing, the guard, a file of queries),
    NotSupported and EnvironmentLacks (a fault that cannot be had there), Unavailable.
    """

    def __init__(
        self,
        experiment: Experiment,
        system: System,
        *,
        seed: int = 0,
        force: bool = False,
        ready_s_max: float = READY_S_MAX,
        slack_s: float = SLACK_S,
        tell: Tell = tell_nobody,
    ) -> None:
        self._experiment = experiment
        self._system = system
        self._seed = seed
        self._force = force
        self._ready_s_max = ready_s_max
        self._slack_s = slack_s
        self._tell = tell
        self._start_s = 0.0
        self.stopped_by = ""
        self._seen = seen = system.seen
        self._result = Result(
            experiment, system.subject, seed, system.place.name, seen, time.time()
        )

    async def run(self) -> Result:
        """Run it. Cancelled, it rolls back and returns a result with the verdict Stopped."""
        self._start_s = asyncio.get_running_loop().time()
        hits = plan(self._experiment, await self._system.targets(), self._seed)
        waiting = await self._until_ready(self._ready_s_max)
        if not (waiting or self._force):
            check_blast(hits, await self._system.pools())
        faults = Faults(self._system, hits, self._result.done, self._elapsed_s, self._note)
        result, workload = self._result, self._experiment.workload
        limit_s = workload.before_s + workload.during_s + workload.after_s + workload.recovery_s
        try:
            async with asyncio.timeout(limit_s + self._slack_s):
                self._check_ready(waiting)
                await self._all(faults, hits)
        except Broken as exc:
            result.verdict, result.fail_step = exc.verdict, exc.step
        except TimeoutError:
            result.fail_step = f"not over within {limit_s + self._slack_s:g} s"
        except asyncio.CancelledError:
            result.fail_step = self.stopped_by or "told to stop"
        except ProaError as exc:
            if not result.phases:
                raise  # nothing has been done yet
            result.fail_step = f"{type(exc).__name__}: {exc}"
        finally:
            await _in_spite_of_cancel(faults.end_all())
        result.duration_s = self._elapsed_s()
        self._note("verdict", f"{result.verdict.value}{_because(result.fail_step)}")
        return result

    def _check_ready(self, waiting: tuple[str, ...]) -> None:
        if waiting:
            at_s = self._elapsed_s()
            self._result.before = Steady(met=False, waiting_for=waiting, findings=(), at_s=at_s)
            raise Broken(Verdict.FAIL, f"steady state before: {'; '.join(waiting)}")

    async def _all(self, faults: Faults, hits: Sequence[Hit]) -> None:
        result, system = self._result, self._system
        await system.place.prepare(hits)
        async with system.asked():
            await self._phase("before", system.load)
            findings = self._judge("before")
            met = all(finding.met for finding in findings)
            result.before = Steady(met, (), tuple(findings), self._elapsed_s())
            if not met:
                raise Broken(Verdict.FAIL, f"steady state before: {_first_missed(findings)}")
            await self._phase("during", lambda phase, start: self._during(phase, start, faults))
            await faults.end_all()
            self._judge("during")
            await self._recover()
            await self._phase("after", system.load)
        self._conclude()

    async def _phase(self, name: str, run: Callable[[str, float], Awaitable[None]]) -> None:
        begin_s = self._elapsed_s()
        self._note("phase", f"{name}: {self._system.rate_text(name)}")
        ticking = asyncio.create_task(self._watch(name))
        try:
            await run(name, self._start_s)
        finally:
            ticking.cancel()
            self._result.phases[name] = (begin_s, self._elapsed_s())
        await self._system.phase_over(name)

    async def _during(self, phase: str, start_s: float, faults: Faults) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                guarding = tasks.create_task(self._guard())
                acting = tasks.create_task(faults.act())
                await self._system.load(phase, start_s)
                await acting
                guarding.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _guard(self) -> None:
        """Raise Broken when a guard is breached."""
        while self._experiment.guards:
            await asyncio.sleep(TICK_S)
            for guard in self._experiment.guards:
                since_s = self._elapsed_s() - guard.window_s
                recent = [s for s in self._seen.of("during") if s.at_s + s.latency_s >= since_s]
                if len(recent) < guard.samples_min:
                    continue
                finding = judge_window(guard.probe, recent, self._seen)
                if not finding.met:
                    step = f"guard: {guard.probe.name}; found {finding.text}"
                    self._note("guard", step)
                    raise Broken(Verdict.STOPPED, step)

    async def _recover(self) -> None:
        begin_s = self._elapsed_s()
        waiting = await self._until_ready(self._experiment.workload.recovery_s, after=True)
        if waiting:
            step = f"steady state after: {'; '.join(waiting)}"
            self._result.after = Steady(
                met=False, waiting_for=waiting, findings=(), at_s=self._elapsed_s()
            )
            raise Broken(Verdict.FAIL, step)
        self._seen.recovery_s = self._elapsed_s() - begin_s
        self._note("recovery", f"all ready {self._seen.recovery_s:.1f} s after the faults")
        await self._system.recovered(self._result.notes)
        for line in self._result.notes:
            self._note("found", line)

    async def _until_ready(self, limit_s: float, *, after: bool = False) -> tuple[str, ...]:
        """Wait for the steady state; what is still missing after `limit_s`."""
        end_s = self._elapsed_s() + limit_s
        before: tuple[str, ...] = ()
        while True:
            waiting = tuple(await self._system.waiting_for(after=after))
            if not waiting or self._elapsed_s() > end_s:
                return waiting
            if waiting != before:
                self._note("waiting", "; ".join(waiting))
            before = waiting
            await asyncio.sleep(READY_POLL_S)

    def _judge(self, phase: str) -> list[Finding]:
        """Judge what can be judged after `phase`."""
        found = [judge(probe, self._seen) for probe in probes_of(self._experiment, phase)]
        for finding in found:
            word = "met" if finding.met else "MISSED"
            self._note("probe", f"{word}  {finding.probe.name}: {finding.text}")
        self._result.findings += found
        return found

    def _conclude(self) -> None:
        result = self._result
        after = self._judge("after")
        met = all(finding.met for finding in after)
        result.after = Steady(met, (), tuple(after), self._elapsed_s())
        result.phase = Phase.COMPLETED
        missed = _first_missed(result.findings)
        result.verdict, result.fail_step = (Verdict.FAIL if missed else Verdict.PASS), missed

    async def _watch(self, phase: str) -> None:
        """A line a second for who watches."""
        while True:
            before_s = self._elapsed_s()
            await asyncio.sleep(LOAD_EVENT_S)
            recent = [s for s in self._seen.of(phase) if s.at_s + s.latency_s >= before_s]
            if recent:
                self._note("load", self._system.line(recent))

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s

    def _note(self, kind: str, text: str) -> None:
        self._tell(Event(self._elapsed_s(), kind, text))


def _first_missed(findings: Sequence[Finding]) -> str:
    for finding in findings:
        if not finding.met:
            return f"{finding.probe.name}; found {finding.text}"
    return ""


def _because(step: str) -> str:
    return f": {step}" if step else ""


async def _in_spite_of_cancel(work: Awaitable[None]) -> None:
    """Finish `work` although we are told to stop, again and again."""
    task = asyncio.ensure_future(work)
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            continue
    task.result()

"""A discrete-event shell around the real engine: seeded, in virtual time, without any tensors.

It repeats the world of the policy study: Poisson arrivals, workers that compute one thing at a
time, and pairs of random workers that are slow for a while. Several frontends, each with an engine
of its own, may share the workers; they meet there and nowhere else.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from proa.dispatch import Engine, EngineConfig
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED, PARITY
from proa.frontend.load import LoadMeter, Report

WARM_UP = 0.1


@dataclass(frozen=True)
class Conditions:
    """The world: `slow_pairs` pairs of workers are slow at any time, for episodes of mean
    `episode_s`, in which a computation takes an exponential `extra_s` more. `slow`: how many are so
    all the time; `killed_at`: when w0 leaves, with what it computes; `wire_s`: the way to a worker,
    and back."""

    rate_hz: float
    queries: int = 4000
    workers: int = 18
    service_s: float = 0.020
    jitter: float = 0.05
    slow_pairs: int = 4
    extra_s: float = 0.015
    episode_s: float = 0.6
    decode_s: float = 0.0002
    deadline_s: float = 10.0
    slow: int = 0
    killed_at: float | None = None
    wire_s: float = 0.0


@dataclass(frozen=True)
class Frontends:
    """How many share the workers; whether they divide the room for redundant work, and whether
    workers report their load (with answers to queries, not with parity rows)."""

    count: int = 1
    divided: bool = True
    reports: bool = True


@dataclass
class Device:
    """A worker: what it computes, then what waits there, and its books since it started."""

    waiting: deque[tuple[Frontend, ac.Send | ac.SendParity]] = field(default_factory=deque)
    finished: int = 0
    busy_s: float = 0.0


@dataclass(eq=False)
class Frontend:
    """One engine, and what it makes of the reports: a meter for each worker."""

    engine: Engine
    meters: dict[str, LoadMeter] = field(default_factory=dict)
    own: dict[int, AbstractContextManager[None]] = field(default_factory=dict)
    sent_at: dict[int, float] = field(default_factory=dict)

    def begin(self, attempt: int, worker: str, now: float) -> None:
        """An attempt is sent."""
        meter = self.meters.setdefault(worker, LoadMeter())
        self.own[attempt] = meter.own()
        self.own[attempt].__enter__()
        self.sent_at[attempt] = now

    def end(self, attempt: int) -> None:
        """It was answered or cancelled."""
        if attempt in self.own:
            self.own.pop(attempt).__exit__(None, None, None)


@dataclass(frozen=True)
class Finished:
    """A computation ends."""

    worker: str
    took_s: float


@dataclass(frozen=True)
class Reached:
    """What a frontend sent is at its worker: work, or the id of an attempt to cancel."""

    action: ac.Send | ac.SendParity | ac.Cancel


@dataclass
class Outcome:
    """What came of a run. `work`: computations per query; `failed`: answers that were errors, of
    which `failures` has the status and the seconds from arrival; `replied_s`: when the others
    were answered."""

    latencies_s: list[float] = field(default_factory=list)
    replied_s: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, float]] = field(default_factory=list)
    computed: int = 0
    queue_max: int = 0

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def work(self) -> float:
        return self.computed / max(1, len(self.latencies_s) + self.failed)

    def quantile_ms(self, q: float) -> float:
        """The q-quantile of the latencies after the warm-up, in milliseconds."""
        steady = sorted(self.latencies_s[int(WARM_UP * len(self.latencies_s)) :])
        return 1000.0 * steady[min(len(steady) - 1, int(q * len(steady)))]


class Simulation:
    """One run of one configuration. `run()` plays all of it."""

    def __init__(
        self,
        config: EngineConfig,
        world: Conditions,
        *,
        seed: int = 0,
        frontends: Frontends | None = None,
    ) -> None:
        self.config = config
        self.world = world
        self.shared = frontends or Frontends()
        self.frontends = [Frontend(Engine(config)) for _ in range(self.shared.count)]
        self.outcome = Outcome()
        self.now = 0.0
        # Streams of their own: every policy sees the same arrivals and the same slow workers.
        self._service = random.Random(f"service {seed}")
        self._heap: list[tuple[float, int, Frontend | None, object]] = []
        self._sequence = 0
        self._arrived_s: dict[int, float] = {}
        self._devices: dict[str, Device] = {}
        self._slow = list(self._episodes(random.Random(f"slow {seed}")))
        self._slow_at = 0
        self._slow_now: Counter[str] = Counter()
        self._join()
        arrivals = random.Random(f"arrivals {seed}")
        doors = random.Random(f"doors {seed}")
        at = 0.0
        for query in range(world.queries):
            at += arrivals.expovariate(world.rate_hz)
            self._arrived_s[query] = at
            door = doors.choice(self.frontends)
            self._at(at, door, ev.QueryArrived(query, "m", at + world.deadline_s, size=1))

    def _join(self) -> None:
        dedicated = self.world.workers // 3 if self.config.pool == "dedicated" else 0
        for i in range(self.world.workers):
            roles = {DEPLOYED, PARITY}
            if self.config.pool == "dedicated":
                roles = {PARITY} if i < dedicated else {DEPLOYED}
            self._devices[f"w{i}"] = Device()
            for one in self.frontends:
                self._at(0.0, one, ev.WorkerJoined(f"w{i}", f"d{i}", "p", frozenset(roles)))
        for index, one in enumerate(self.frontends):
            if self.shared.divided:
                self._at(0.0, one, ev.FrontendsChanged(self.shared.count, index))
            if self.world.killed_at is not None:
                self._at(self.world.killed_at, one, ev.WorkerLeft("w0"))

    def _episodes(self, rng: random.Random) -> Iterator[tuple[float, str, int]]:
        """(time, worker, +1 slow or -1 well again), in order of time."""
        end = 1.5 * self.world.queries / self.world.rate_hz + 5.0
        found = [(0.0, f"w{worker}", 1) for worker in range(self.world.slow)]
        for _ in range(self.world.slow_pairs):
            at = 0.0
            while at < end:
                until = at + rng.expovariate(1 / self.world.episode_s)
                for worker in rng.sample(range(self.world.workers), 2):
                    found += [(at, f"w{worker}", 1), (until, f"w{worker}", -1)]
                at = until
        yield from sorted(found)

    def _at(self, at: float, frontend: Frontend | None, event: object) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, frontend, event))

    def run(self) -> Outcome:
        """Play until nothing is left to happen."""
        while self._heap:
            self.now, _, frontend, event = heapq.heappop(self._heap)
            if isinstance(event, Finished):
                self._finished(event)
                continue
            assert frontend is not None
            if isinstance(event, Reached):
                self._reached(frontend, event.action)
                continue
            for action in frontend.engine.handle(event, self.now):
                self._perform(frontend, action)
            depth = sum(one.engine.queue_depth for one in self.frontends)
            self.outcome.queue_max = max(self.outcome.queue_max, depth)
        return self.outcome

    def _perform(self, frontend: Frontend, action: ac.Action) -> None:
        match action:
            case ac.Send() | ac.SendParity():
                frontend.begin(action.attempt, action.worker, self.now)
                self._at(self.now + self.world.wire_s, frontend, Reached(action))
            case ac.SetTimer(timer, at):
                self._at(at, frontend, ev.TimerFired(timer))
            case ac.Decode(group, members, missing):
                decoded = ev.Decoded(group, tuple(members[i] for i in missing))
                self._at(self.now + self.world.decode_s, frontend, decoded)
            case ac.Assess(group):
                self._at(self.now + self.world.decode_s, frontend, ev.Assessed(group, 1.0))
            case ac.Reply(query, source):
                self.outcome.latencies_s.append(self.now - self._arrived_s[query])
                self.outcome.replied_s.append(self.now)
                self.outcome.sources[source.value] += 1
            case ac.Fail(query, status):
                self.outcome.failures.append((status, self.now - self._arrived_s[query]))
            case ac.Cancel(attempt):
                frontend.end(attempt)
                self._at(self.now + self.world.wire_s, frontend, Reached(action))

    def _reached(self, frontend: Frontend, action: ac.Send | ac.SendParity | ac.Cancel) -> None:
        if isinstance(action, ac.Cancel):
            self._withdraw(frontend, action.attempt)
            return
        waiting = self._devices[action.worker].waiting
        waiting.append((frontend, action))
        if len(waiting) == 1:
            self._compute(action.worker)

    def _withdraw(self, frontend: Frontend, attempt: int) -> None:
        """What waits at a worker can be cancelled; what it computes cannot."""
        for device in self._devices.values():
            for one in list(device.waiting)[1:]:
                if one[0] is frontend and one[1].attempt == attempt:
                    device.waiting.remove(one)

    def _compute(self, worker: str) -> None:
        self.outcome.computed += 1
        took_s = self.world.service_s * max(0.1, self._service.gauss(1.0, self.world.jitter))
        extra_s = self._service.expovariate(1 / self.world.extra_s)
        if self._is_slow(worker):
            took_s += extra_s
        self._at(self.now + took_s, None, Finished(worker, took_s))

    def _finished(self, event: Finished) -> None:
        """The worker is free and begins what waits there; it answers what it has finished."""
        device = self._devices[event.worker]
        device.finished += 1
        device.busy_s += event.took_s
        frontend, action = device.waiting.popleft()
        if device.waiting:
            self._compute(event.worker)
        meter = frontend.meters[event.worker]
        is_query = isinstance(action, ac.Send)
        if is_query and self.shared.reports and action.attempt in frontend.own:
            report = Report(device.finished, int(device.busy_s * 1e6), self.now)
            meter.take(report, frontend.sent_at[action.attempt])
        frontend.end(action.attempt)
        answer: ev.Event = ev.ParityAnswered(action.attempt, ok=True)
        if is_query:
            answer = ev.Answered(action.attempt, ok=True, load=meter.share)
        self._at(self.now + self.world.wire_s, frontend, answer)

    def _is_slow(self, worker: str) -> bool:
        while self._slow_at < len(self._slow) and self._slow[self._slow_at][0] <= self.now:
            _, changed, step = self._slow[self._slow_at]
            self._slow_now[changed] += step
            self._slow_at += 1
        return self._slow_now[worker] > 0

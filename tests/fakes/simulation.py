"""A discrete-event shell around the real engine: seeded, in virtual time, without any tensors.

It repeats the world of the policy study: Poisson arrivals, workers that compute one thing at a
time, and pairs of random workers that are slow for a while.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from proa.dispatch import Engine, EngineConfig
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED, PARITY

WARM_UP = 0.1


@dataclass(frozen=True)
class Conditions:
    """The world: `slow_pairs` pairs of workers are slow at any time, for episodes of mean
    `episode_s`, in which a computation takes an exponential `extra_s` more."""

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


@dataclass
class Outcome:
    """What came of a run. `work`: computations per query; `failed`: answers that were errors."""

    latencies_s: list[float] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    computed: int = 0
    queue_max: int = 0

    @property
    def work(self) -> float:
        return self.computed / max(1, len(self.latencies_s) + self.failed)

    def quantile_ms(self, q: float) -> float:
        """The q-quantile of the latencies after the warm-up, in milliseconds."""
        steady = sorted(self.latencies_s[int(WARM_UP * len(self.latencies_s)) :])
        return 1000.0 * steady[min(len(steady) - 1, int(q * len(steady)))]


class Simulation:
    """One run of one configuration. `run()` plays all of it."""

    def __init__(self, config: EngineConfig, world: Conditions, *, seed: int = 0) -> None:
        self.config = config
        self.world = world
        self.engine = Engine(config)
        self.outcome = Outcome()
        self.now = 0.0
        # Streams of their own: every policy sees the same arrivals and the same slow workers.
        self._service = random.Random(f"service {seed}")
        self._heap: list[tuple[float, int, object]] = []
        self._sequence = 0
        self._arrived_s: dict[int, float] = {}
        self._waiting: dict[str, deque[ac.Send | ac.SendParity]] = {}
        self._slow = list(self._episodes(random.Random(f"slow {seed}")))
        self._slow_at = 0
        self._slow_now: Counter[str] = Counter()
        self._join()
        arrivals = random.Random(f"arrivals {seed}")
        at = 0.0
        for query in range(world.queries):
            at += arrivals.expovariate(world.rate_hz)
            self._arrived_s[query] = at
            self._at(at, ev.QueryArrived(query, "m", at + world.deadline_s, size=1))

    def _join(self) -> None:
        dedicated = self.world.workers // 3 if self.config.pool == "dedicated" else 0
        for i in range(self.world.workers):
            roles = {DEPLOYED, PARITY}
            if self.config.pool == "dedicated":
                roles = {PARITY} if i < dedicated else {DEPLOYED}
            self._waiting[f"w{i}"] = deque()
            self._at(0.0, ev.WorkerJoined(f"w{i}", f"d{i}", "p", frozenset(roles)))

    def _episodes(self, rng: random.Random) -> Iterator[tuple[float, str, int]]:
        """(time, worker, +1 slow or -1 well again), in order of time."""
        end = 1.5 * self.world.queries / self.world.rate_hz + 5.0
        found: list[tuple[float, str, int]] = []
        for _ in range(self.world.slow_pairs):
            at = 0.0
            while at < end:
                until = at + rng.expovariate(1 / self.world.episode_s)
                for worker in rng.sample(range(self.world.workers), 2):
                    found += [(at, f"w{worker}", 1), (until, f"w{worker}", -1)]
                at = until
        yield from sorted(found)

    def _at(self, at: float, event: object) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, event))

    def run(self) -> Outcome:
        """Play until nothing is left to happen."""
        while self._heap:
            self.now, _, event = heapq.heappop(self._heap)
            if isinstance(event, ev.Answered | ev.ParityAnswered):
                self._computed(event)
            for action in self.engine.handle(event, self.now):
                self._perform(action)
            self.outcome.queue_max = max(self.outcome.queue_max, self.engine.queue_depth)
        return self.outcome

    def _perform(self, action: ac.Action) -> None:
        match action:
            case ac.Send() | ac.SendParity():
                self._receive(action)
            case ac.SetTimer(timer, at):
                self._at(at, ev.TimerFired(timer))
            case ac.Decode(group, members, missing):
                decoded = ev.Decoded(group, tuple(members[i] for i in missing))
                self._at(self.now + self.world.decode_s, decoded)
            case ac.Assess(group):
                self._at(self.now + self.world.decode_s, ev.Assessed(group, 1.0))
            case ac.Reply(query, source):
                self.outcome.latencies_s.append(self.now - self._arrived_s[query])
                self.outcome.sources[source.value] += 1
            case ac.Fail():
                self.outcome.failed += 1
            case ac.Cancel(attempt):
                self._withdraw(attempt)

    def _receive(self, action: ac.Send | ac.SendParity) -> None:
        queue = self._waiting[action.worker]
        queue.append(action)
        if len(queue) == 1:
            self._compute(action)

    def _withdraw(self, attempt: int) -> None:
        """What waits at a worker can be cancelled; what it computes cannot."""
        for queue in self._waiting.values():
            for waiting in [w for w in list(queue)[1:] if w.attempt == attempt]:
                queue.remove(waiting)

    def _compute(self, action: ac.Send | ac.SendParity) -> None:
        self.outcome.computed += 1
        took = self.world.service_s * max(0.1, self._service.gauss(1.0, self.world.jitter))
        extra = self._service.expovariate(1 / self.world.extra_s)
        if self._is_slow(action.worker):
            took += extra
        answer = ev.Answered if isinstance(action, ac.Send) else ev.ParityAnswered
        self._at(self.now + took, answer(action.attempt, ok=True))

    def _computed(self, event: ev.Answered | ev.ParityAnswered) -> None:
        """The worker is free; it begins what waits there."""
        for queue in self._waiting.values():
            if queue and queue[0].attempt == event.attempt:
                queue.popleft()
                if queue:
                    self._compute(queue[0])
                return

    def _is_slow(self, worker: str) -> bool:
        while self._slow_at < len(self._slow) and self._slow[self._slow_at][0] <= self.now:
            _, changed, step = self._slow[self._slow_at]
            self._slow_now[changed] += step
            self._slow_at += 1
        return self._slow_now[worker] > 0

"""A seeded world around the redundancy engine, and an oracle that judges every action."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from fakes.books import Seen
from fakes.oracle import Oracle
from fakes.worlds import World, random_config, random_lives, random_query, random_world
from proa.dispatch import Engine
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import ErrorKind

RUSH_S = 0.002


class Schedule:
    """One random schedule. `run()` plays it to the end and raises AssertionError at the first
    action that breaks a promise; `seed` replays it. `sabotage` may break the engine first."""

    def __init__(
        self,
        seed: int,
        *,
        queries: int = 14,
        world: World | None = None,
        sabotage: Callable[[Engine], None] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self._moves = random.Random(~seed)
        self.world = world or random_world(self.rng)
        self.config = random_config(self.rng)
        self.engine = Engine(self.config)
        if sabotage is not None:
            sabotage(self.engine)
        self.oracle = Oracle(self.config, self.engine)
        self.seen = self.oracle.seen
        self.now = 0.0
        self._heap: list[tuple[float, int, ev.Event]] = []
        self._sequence = 0
        self._plan(queries)

    def _at(self, at: float, event: ev.Event) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at, self._sequence, event))

    def _plan(self, queries: int) -> None:
        rng = self.rng
        for at, event in random_lives(rng, self._moves, self.config, self.world):
            self._at(at, event)
        if rng.random() < self.world.frontends:
            for _ in range(2):
                count = rng.randint(1, 5)
                changed = ev.FrontendsChanged(count, rng.randrange(count))
                self._at(rng.random() * 0.2, changed)
        at = 0.0
        for query in range(queries + self.world.crowd):
            at += rng.expovariate(1 / (RUSH_S if self.world.crowd else self.world.between_s))
            arrived = random_query(rng, query, at, self.world)
            self.oracle.queries[query] = arrived
            self._at(at, arrived)
            if rng.random() < self.world.cancelled:
                self._at(at + rng.random() * 0.05, ev.QueryCancelled(query))

    def run(self) -> Seen:
        """Play everything; check the final state."""
        while self._heap:
            self.now, _, event = heapq.heappop(self._heap)
            self.oracle.note(event, self.now)
            for action in self.engine.handle(event, self.now):
                self.oracle.check(action)
                self._perform(action)
            self.oracle.judge(event)
        self.oracle.check_end()
        return self.seen

    def _perform(self, action: ac.Action) -> None:
        rng = self.rng
        match action:
            case ac.Send(attempt=attempt) | ac.SendParity(attempt=attempt):
                self._serve(action, attempt)
            case ac.SetTimer(timer, at):
                assert at >= self.now - 1e-9
                self._at(at, ev.TimerFired(timer))
            case ac.Decode(group, members, missing):
                ok = rng.random() >= self.world.decode_failed
                queries = tuple(members[i] for i in missing) if ok else ()
                if ok:
                    self.seen.decodes[group] |= set(queries)
                self._at(self.now + rng.random() * 0.01, ev.Decoded(group, queries))
            case ac.Assess(group):
                agreement = rng.choice([None, 0.5, 1.0, 1.0])
                self._at(self.now + rng.random() * 0.01, ev.Assessed(group, agreement))
            case ac.Probe(worker):
                if rng.random() < 0.9:
                    joined = ev.WorkerJoined(worker, f"d{worker[1:]}", "p")
                    self._at(self.now + rng.random() * 0.3, joined)

    def _serve(self, action: ac.Send | ac.SendParity, attempt: int) -> None:
        """The answer to an attempt: in time, late, failed, twice, or never."""
        rng, world = self.rng, self.world
        if rng.random() < world.lost:
            # The call's own deadline is all that ever ends it.
            queries = (action.query,) if isinstance(action, ac.Send) else action.members
            end = max(
                self.now, *(self.oracle.queries[q].deadline for q in queries), self.now + 0.001
            )
            lost = ev.Answered if isinstance(action, ac.Send) else ev.ParityAnswered
            self._at(end, lost(attempt, ok=False, error_kind=ErrorKind.DEADLINE))
            return
        at = self.now + 0.02 * rng.uniform(0.9, 1.1)
        if rng.random() < world.late:
            at += rng.expovariate(1 / 0.05)
        ok = rng.random() >= world.failed
        kind = None if ok else rng.choice(list(ErrorKind))
        event: ev.Event = (
            ev.Answered(attempt, ok, kind, "no", load=rng.choice([0.0, 0.0, 0.3, 1.0]))
            if isinstance(action, ac.Send)
            else ev.ParityAnswered(attempt, ok, kind)
        )
        self._at(at, event)
        if rng.random() < world.duplicated:
            self._at(at + rng.random() * 0.05, event)

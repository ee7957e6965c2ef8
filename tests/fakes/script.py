"""Plays a short story to one engine, event by event, in virtual time, and keeps what it does."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Any, TypeVar

from proa.dispatch import Engine, EngineConfig
from proa.dispatch import actions as ac
from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED, PARITY, ErrorKind

BOTH = frozenset((DEPLOYED, PARITY))
SERVICE_S = 0.020
PRIOR_S = 0.030
WARM = 1_000_000_000  # ids of warm-up queries, far from those of any story

A = TypeVar("A")


class Script:
    """`workers` workers w0, w1, ... in domains d0, d1, ...; the rest is EngineConfig. Without a
    warm-up an answer is late after PRIOR_S."""

    def __init__(self, workers: int = 4, **config: Any) -> None:
        settings = {"quality_sample": 0.0, "latency_prior_s": PRIOR_S, **config}
        self.engine = Engine(EngineConfig(**settings))
        self.now = 0.0
        self.log: list[tuple[float, ac.Action]] = []
        self.running: dict[int, ac.Send | ac.SendParity] = {}
        self.ends: dict[int, ac.Reply | ac.Fail] = {}
        self.ended_at: dict[int, float] = {}
        self.timers: list[tuple[float, int, Hashable]] = []
        self._warm = WARM
        for i in range(workers):
            self.join(f"w{i}")

    # --- events

    def feed(self, event: ev.Event) -> list[ac.Action]:
        """One event now; the engine's actions."""
        actions = self.engine.handle(event, self.now)
        for action in actions:
            self.log.append((self.now, action))
            match action:
                case ac.Send(attempt=attempt) | ac.SendParity(attempt=attempt):
                    self.running[attempt] = action
                case ac.Cancel(attempt):
                    self.running.pop(attempt, None)
                case ac.Reply(query=query) | ac.Fail(query=query):
                    assert query not in self.ends, "two answers"
                    self.ends[query] = action
                    self.ended_at[query] = self.now
                case ac.SetTimer(timer, at):
                    heapq.heappush(self.timers, (at, len(self.log), timer))
        return actions

    def join(
        self, worker: str, domain: str = "", package: str = "p", roles: frozenset[str] = BOTH
    ) -> list[ac.Action]:
        """`worker` passed its canary."""
        return self.feed(ev.WorkerJoined(worker, domain or f"d{worker[1:]}", package, roles))

    def query(self, query: int, key: Hashable = "m", **fields: Any) -> list[ac.Action]:
        """`query` arrives; its deadline is 1 s from now unless told."""
        arrived = {"deadline": self.now + 1.0, "size": 10, **fields}
        return self.feed(ev.QueryArrived(query, key, **arrived))

    def answer(
        self, query: int, kind: ErrorKind | None = None, *, worker: str = "", message: str = "no"
    ) -> list[ac.Action]:
        """The oldest running attempt at `query` (at `worker`) ends: well, or with an error."""
        sent = next(
            s
            for s in self.running.values()
            if isinstance(s, ac.Send) and s.query == query and worker in ("", s.worker)
        )
        del self.running[sent.attempt]
        note = "" if kind is None else message
        return self.feed(ev.Answered(sent.attempt, kind is None, kind, note))

    def parity(self, row: int = 0, kind: ErrorKind | None = None) -> list[ac.Action]:
        """The oldest running parity row `row` ends."""
        sent = next(
            s for s in self.running.values() if isinstance(s, ac.SendParity) and s.row == row
        )
        del self.running[sent.attempt]
        return self.feed(ev.ParityAnswered(sent.attempt, kind is None, kind))

    def decoded(self, decode: ac.Decode, *, ok: bool = True) -> list[ac.Action]:
        """A decode ends."""
        queries = tuple(decode.members[i] for i in decode.missing)
        return self.feed(ev.Decoded(decode.group, queries if ok else ()))

    def advance(self, seconds: float) -> list[ac.Action]:
        """Time passes; every timer that becomes due fires at its time."""
        end, found = self.now + seconds, []
        while self.timers and self.timers[0][0] <= end + 1e-12:
            at, _, timer = heapq.heappop(self.timers)
            self.now = max(self.now, at)
            found += self.feed(ev.TimerFired(timer))
        self.now = end
        return found

    def warm_up(self, queries: int = 40, service_s: float = SERVICE_S, **fields: Any) -> None:
        """So many queries of another tenant, one by one, each answered after `service_s`."""
        for _ in range(queries):
            self._warm += 1
            self.query(self._warm, **{"key": "warm", "policy": "none", **fields})
            self.advance(service_s)
            self.answer(self._warm)
        self.log.clear()

    def straggle(self, times: int = 1, latency_s: float = 0.1) -> None:
        """So often a query is answered after `latency_s`, and one that was sent later before it;
        then half a second passes, in which the picker forgets the most of it."""
        for _ in range(times):
            slow, quick = self._warm + 1, self._warm + 2
            self._warm += 2
            self.query(slow, key="warm", policy="none")
            self.advance(SERVICE_S)
            self.query(quick, key="warm", policy="none")
            self.advance(SERVICE_S)
            self.answer(quick)
            self.advance(latency_s - 2 * SERVICE_S)
            self.answer(slow)
            self.advance(0.5)
        self.log.clear()

    # --- what came of it

    def every(self, kind: type[A]) -> list[A]:
        """All actions of a kind so far, in order."""
        return [action for _, action in self.log if isinstance(action, kind)]

    def sends(self, query: int) -> list[ac.Send]:
        """All attempts at `query`, in order."""
        return [send for send in self.every(ac.Send) if send.query == query]

    def where(self, query: int) -> str:
        """The worker of the first attempt at `query`."""
        return self.sends(query)[0].worker

    def at(self, wanted: ac.Action) -> float:
        """When the engine did `wanted`."""
        return next(at for at, action in self.log if action is wanted)

    def timer(self, kind: type) -> float:
        """When the last timer of a kind was set to fire."""
        return [t.at for t in self.every(ac.SetTimer) if isinstance(t.timer, kind)][-1]


def only(actions: list[ac.Action], kind: type[A]) -> A:
    """The one action of a kind among `actions`."""
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


def none_of(actions: list[ac.Action], *kinds: type) -> bool:
    """Whether there is no action of these kinds."""
    return not any(isinstance(action, kinds) for action in actions)

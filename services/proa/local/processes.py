"""A process that is kept running: started, asked whether it is ready and alive, restarted."""

from __future__ import annotations

import asyncio
import enum
import itertools
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

from proa.errors import Unavailable
from proa.local.child import Child
from proa.local.priority import Priority
from proa.local.probe import Probe, probe
from proa.runtime.waiting import set_within

EXIT_SETTINGS = (
    2  # what our services exit with when their settings are wrong: trying again is no use
)
_LOOK_EVERY = 4  # readiness probes of a starting process to one look for sessions it made
Sink = Callable[[str, str], None]


@dataclass(frozen=True)
class Limits:
    """How patient the supervisor is. Times in seconds."""

    start_s_max: float = 150.0
    """From start to ready; a worker gives up after 120 s by itself, with a better message."""
    start_attempts_max: int = 3
    """Exits before the process was ever ready: then starting it has failed for good."""
    backoff_s_min: float = 0.25
    backoff_s_max: float = 5.0
    healthy_s_min: float = 10.0
    """Ready for this long: the next restart waits backoff_s_min again."""
    low_priority_s_max: float = 30.0
    """A restart that takes longer goes on at normal priority: a busy machine would starve it."""
    starting_probe_s: float = 0.1
    probe_s: float = 1.0
    probe_timeout_s: float = 1.0
    probe_failures_max: int = 4
    """Unanswered /livez in a row: the process is frozen, and killed so that it starts anew."""


@dataclass(frozen=True)
class ProcessSpec:
    """What to run. `stage`: 0 is drained first. `clean` removes what a killed one leaves behind.

    `probe`: asks whether it is ready and alive, for a program that has no admin port.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    admin_port: int
    port: int = 0
    stage: int = 0
    grace_s: float = 10.0
    clean: Callable[[], object] | None = None
    probe: Callable[[float], Awaitable[Probe]] | None = None


class State(enum.Enum):
    """Where a process is. Only a READY one has passed its own readiness check just now."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNREADY = "unready"
    BACKOFF = "backoff"
    HELD = "held"
    FAILED = "failed"


@dataclass(frozen=True)
class ProcessStatus:
    """A process now. `restarts`: starts after the first; `reason`: why it is not ready."""

    name: str
    state: State
    pid: int | None
    restarts: int
    port: int
    admin_port: int
    reason: str = ""


@dataclass
class _Life:
    """What is remembered from one start of a process to the next."""

    ever_ready: bool = False
    starts: int = 0
    failed_starts: int = 0
    exits: int = 0
    ready_at: float | None = None
    planned: bool = False
    ended: str = ""
    probe: Probe = field(default_factory=lambda: Probe(0, "not asked yet"))


class ManagedProcess:
    """Keeps one process running until `stop`. `keep` is its root task."""

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        sink: Sink,
        limits: Limits,
        priority: Priority,
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self._sink = sink
        self._limits = limits
        self._priority = priority
        self._on_change = on_change
        self._state = State.STOPPED
        self._child: Child | None = None
        self._life = _Life()
        self._held = False
        self._stopping = False
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def status(self) -> ProcessStatus:
        spec, life = self.spec, self._life
        running = self._child is not None and self._child.running
        pid = self._child.pid if running and self._child else None
        reason = "" if self._state is State.READY else life.probe.text
        restarts = max(0, life.starts - 1)
        return ProcessStatus(
            spec.name, self._state, pid, restarts, spec.port, spec.admin_port, reason
        )

    @property
    def _draining(self) -> bool:
        return self._stopping or self._life.planned

    async def wait_for(self, state: State) -> None:
        """Wait until the process is in `state`. Watch `keep` meanwhile: it may raise."""
        while self._state is not state:
            self._changed.clear()
            await self._changed.wait()

    def signal(self, number: signal.Signals, *, tree: bool) -> None:
        """Signal the process; with `tree`, all it started too. Not running: nothing."""
        if self._child is not None:
            self._child.signal(number, tree=tree)

    def hold(self) -> None:
        """From now on, do not start it again when it ends."""
        self._held = True

    def release(self) -> None:
        """Undo `hold`; if it is down, start it at once."""
        self._held = False
        self._wake.set()

    async def restart(self, env: Mapping[str, str]) -> None:
        """Drain it and start it again, at once, with `env` on top of its environment."""
        self.hold()
        self._life = _Life(starts=self._life.starts, planned=True)
        self._wake.set()  # out of a backoff
        if self._child is not None:
            await self._child.terminate(self.spec.grace_s)
        await self.wait_for(State.HELD)
        self.spec = replace(self.spec, env={**self.spec.env, **env})
        self.release()

    async def stop(self) -> None:
        """Drain it for good: SIGTERM, then after its grace SIGKILL to all it started."""
        self._stopping = True
        self._wake.set()
        if self._child is not None:
            await self._child.terminate(self.spec.grace_s)

    async def keep(self) -> None:
        """Run and restart it until `stop`. Raises Unavailable when it cannot be started at all."""
        try:
            while not self._stopping:
                if self._held:
                    self._enter(State.HELD)
                    await self._sleep(None)
                    continue
                await self._live_once()
                if not self._stopping and not self._held:
                    await self._back_off()
            self._enter(State.STOPPED)
        except Unavailable:
            self._enter(State.FAILED)
            raise
        finally:
            if self._child is not None:
                self._child.kill()

    async def _live_once(self) -> None:
        life, spec = self._life, self.spec
        life.starts += 1
        life.ready_at, life.planned = None, False
        child = self._child = Child(
            spec.argv,
            {**os.environ, **spec.env},
            nice=self._priority.start_nice if life.exits else 0,
            on_line=lambda line: self._sink(spec.name, line),
        )
        self._enter(State.STARTING)
        watch = asyncio.create_task(self._watch(child), name=f"watch {spec.name}")
        exited = asyncio.create_task(child.exited())
        try:
            await asyncio.wait({watch, exited}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            exited.cancel()
        if watch.done() and not watch.cancelled():
            watch.result()  # raises what it raised
        await child.clear()
        self._ended(child, await child.exited())

    def _ended(self, child: Child, status: int) -> None:
        """It and all it started are gone. Raises Unavailable when it is not to come back."""
        life = self._life
        if self.spec.clean is not None:
            self.spec.clean()
        if self._draining:
            return
        life.exits += 1
        ended = life.ended = describe_exit(status)
        if life.ever_ready or self._held:
            return
        life.failed_starts += 1
        if status == EXIT_SETTINGS or life.failed_starts >= self._limits.start_attempts_max:
            raise self._never_ready(child, f"{ended} before it was ready")

    async def _back_off(self) -> None:
        life, limits = self._life, self._limits
        now = asyncio.get_running_loop().time()
        if life.ready_at is not None and now - life.ready_at >= limits.healthy_s_min:
            life.exits = 1
        delay_s = min(limits.backoff_s_min * 2.0 ** (life.exits - 1), limits.backoff_s_max)
        self._sink(self.spec.name, f"[{life.ended}; starts again in {delay_s:g} s]")
        self._enter(State.BACKOFF)
        await self._sleep(delay_s)

    async def _watch(self, child: Child) -> None:
        """Until it is ready, then until it is frozen; returns when the child has to be killed."""
        if not await self._wait_ready(child):
            self._sink(self.spec.name, f"[not ready within {self._limits.start_s_max:g} s; killed]")
            return
        failures = 0
        while failures < self._limits.probe_failures_max:
            await asyncio.sleep(self._limits.probe_s)
            alive = self._draining or await self._is_alive()
            failures = 0 if alive else failures + 1
        self._sink(self.spec.name, f"[frozen: {self._life.probe.text}; killed]")

    async def _wait_ready(self, child: Child) -> bool:
        """False when it took too long. Raises Unavailable when it has never been ready at all."""
        limits, life = self._limits, self._life
        try:
            async with asyncio.timeout(limits.start_s_max):
                await self._start(child)
        except TimeoutError as exc:
            if life.ever_ready:
                return False
            raise self._never_ready(child, f"not ready within {limits.start_s_max:g} s") from exc
        life.ever_ready = True
        life.ready_at = asyncio.get_running_loop().time()
        self._enter(State.READY)
        return True

    async def _start(self, child: Child) -> None:
        """Until it is ready. At low priority, unless it is the first start: then nobody serves."""
        low = restart = self._life.exits > 0
        lowered: set[int] = set()
        loop = asyncio.get_running_loop()
        low_until = loop.time() + self._limits.low_priority_s_max
        for turn in itertools.count():
            if await self._is_ready():
                break
            if turn % _LOOK_EVERY == 0 and low:
                await self._priority.lower(child.family, lowered)
            if low and loop.time() > low_until:
                await self._priority.restore(child.family)
                low = False
            await asyncio.sleep(self._limits.starting_probe_s)
        child.family.members()  # all are there now: known, to be ended with it
        if restart:
            await self._priority.restore(child.family)

    async def _is_ready(self) -> bool:
        self._life.probe = await self._ask("/readyz")
        return self._life.probe.ok

    async def _ask(self, path: str) -> Probe:
        timeout_s = self._limits.probe_timeout_s
        if self.spec.probe is not None:
            return await self.spec.probe(timeout_s)
        return await probe(self.spec.admin_port, path, timeout_s=timeout_s)

    async def _is_alive(self) -> bool:
        """Ready, or at least alive: /readyz alone spares a request a second."""
        if await self._is_ready():
            self._enter(State.READY)
            return True
        self._enter(State.UNREADY)
        if self._life.probe.status == 0:
            return False
        return (await self._ask("/livez")).ok

    def _never_ready(self, child: Child, what: str) -> Unavailable:
        said = "\n".join(f"  {line}" for line in child.tail) or "  (it printed nothing)"
        hint = f"; /readyz: {self._life.probe.text}" if self._life.probe.status else ""
        return Unavailable(f"{self.spec.name}: {what}{hint}. Its last lines:\n{said}")

    def _enter(self, state: State) -> None:
        if self._state is not state:
            self._state = state
            self._changed.set()
            self._on_change()

    async def _sleep(self, delay_s: float | None) -> None:
        """Until `delay_s` has passed, or `release`, `restart` or `stop` is called."""
        self._wake.clear()
        await set_within(self._wake, delay_s)


def describe_exit(status: int) -> str:
    """`exited with status 3`, or `killed by SIGKILL`."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"

"""Keeps the workers of one model: canary first, then in service; suspected ones are tried anew,
those that leave finish what they have."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED
from proa.errors import Unavailable
from proa.frontend.addresses import WorkerAddress
from proa.frontend.nursery import Nursery
from proa.frontend.shell import Shell
from proa.frontend.workers import WorkerCalls, mapped
from proa.runtime.waiting import set_within

log = logging.getLogger(__name__)

RETRY_S_MIN, RETRY_S_MAX = 0.1, 1.0
CANARY_FAILURES_MAX = 2
LEAVE_POLL_S = 0.05
LEAVE_S_MAX = 600.0  # what runs at a worker has deadlines; one that leaves is not waited for longer


@dataclass(slots=True)
class Member:
    """One worker. `state`: starting, up, suspected or draining; `reason`: why it is not up;
    `tried`: whether a canary has ended, well or not; `successor`: takes its name once it left."""

    address: WorkerAddress
    state: str = "starting"
    reason: str = "not tried yet"
    roles: frozenset[str] = frozenset()
    package: str = ""
    tried: bool = False
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    successor: WorkerAddress | None = None
    keeper: asyncio.Task[None] | None = None


class Pool:
    """The workers of one model, which may change at any time."""

    def __init__(
        self, calls: WorkerCalls, nursery: Nursery, *, canary_s: float, timeout_s: float
    ) -> None:
        self.members: dict[str, Member] = {}
        self.ready = asyncio.Event()
        self.was_ready = False
        self._calls = calls
        self._nursery = nursery
        self._canary_s = canary_s
        self._timeout_s = timeout_s

    @property
    def package(self) -> str:
        """The package that most workers in service host; empty where none is."""
        found = [m.package for m in self.members.values() if m.state == "up"]
        return max(set(found), key=found.count, default="")

    @property
    def tried(self) -> bool:
        """Whether every worker has been asked once."""
        return all(member.tried for member in self.members.values())

    def update(self, workers: Sequence[WorkerAddress], shell: Shell) -> None:
        """These are the workers from now on. Those that are no longer among them get no new work;
        one with another address or role is another worker."""
        wanted = {worker.name: worker for worker in workers}
        for name, member in list(self.members.items()):
            found = wanted.pop(name, None)
            if member.state == "draining":
                member.successor = found
            elif found is not None and _only_moved(member.address, found):
                member.address = found
                if shell.engine.state.workers.get(name) is not None:
                    shell.moved(found)
            elif found != member.address:
                member.successor = found
                self._dismiss(member, shell)
        for worker in wanted.values():
            self._add(worker, shell)

    def probe(self, worker: str) -> None:
        """The engine no longer trusts `worker`."""
        member = self.members.get(worker)
        if member is None:
            return
        if member.state == "up":
            member.state, member.reason = "suspected", "failed, or did not answer in time"
        member.suspected.set()
        self._update_ready()

    def close(self) -> None:
        """Keep no worker any more."""
        for member in self.members.values():
            if member.keeper is not None:
                member.keeper.cancel()

    def disconnect(self) -> None:
        """No model has these workers any more."""
        for member in self.members.values():
            self._calls.disconnect(member.address)

    def _add(self, worker: WorkerAddress, shell: Shell) -> None:
        member = self.members[worker.name] = Member(worker)
        member.keeper = self._nursery.start(self._keep(member, shell))

    def _dismiss(self, member: Member, shell: Shell) -> None:
        assert member.keeper is not None
        member.keeper.cancel()
        member.state, member.reason = "draining", "it leaves"
        if shell.engine.state.workers.get(member.address.name) is not None:
            shell.draining(member.address.name)
        member.keeper = self._nursery.start(self._take_leave(member, shell))
        self._update_ready()

    async def _take_leave(self, member: Member, shell: Shell) -> None:
        """What runs at the worker may finish, unless its successor stands at another address: then
        it is gone already."""
        name = member.address.name
        end = time.monotonic() + LEAVE_S_MAX
        while time.monotonic() < end:
            worker = shell.engine.state.workers.get(name)
            moved = member.successor and member.successor.address != member.address.address
            if worker is None or not worker.running or moved:
                break
            await asyncio.sleep(LEAVE_POLL_S)
        shell.left(name)
        self._calls.disconnect(member.address)
        log.info("worker left worker=%s model=%s", name, shell.spec.name)
        del self.members[name]
        if member.successor is not None:
            self._add(member.successor, shell)

    async def _keep(self, member: Member, shell: Shell) -> None:
        while True:
            await self._try_until_good(member)
            member.suspected.clear()
            member.state, member.reason = "up", ""
            shell.joined(member.address, member.package, member.roles)
            log.info("worker joined worker=%s model=%s", member.address.name, shell.spec.name)
            self._update_ready()
            await self._watch(member, shell)
            log.warning("worker suspected worker=%s", member.address.name)

    async def _try_until_good(self, member: Member) -> None:
        delay_s = RETRY_S_MIN
        while True:
            try:
                await self._check(member)
            except Exception as exc:  # noqa: BLE001  # no worker may end the frontend
                reason = str(mapped(exc))
                if reason != member.reason:
                    member.reason = reason
                    log.info("worker not ready: %s", reason)
                member.tried = True
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_S_MAX)
            else:
                member.tried = True
                return

    async def _check(self, member: Member) -> None:
        hosted = await self._calls.hosted(member.address, self._timeout_s)
        member.package = hosted.package
        member.roles = self._calls.roles(member.address, hosted)
        if not member.roles:
            programs = ", ".join(sorted(hosted.programs)) or "nothing"
            raise Unavailable(
                f"worker {member.address.name} hosts {programs}, nothing that it is configured for"
            )
        await self._calls.canary(member.address, member.roles, self._timeout_s)

    async def _watch(self, member: Member, shell: Shell) -> None:
        """Returns once the worker is suspected: by the engine, because it was quiet and then failed
        canaries, or because it was replaced by one with another package. A worker that answers
        queries needs no canary."""
        failures = 0
        answered = -1
        while not member.suspected.is_set():
            await set_within(member.suspected, self._canary_s)
            worker = shell.engine.state.workers.get(member.address.name)
            assert worker is not None
            quiet = worker.answered == answered and not worker.running
            answered = worker.answered
            started = time.monotonic()
            try:
                await self._check_again(member, quiet=quiet, shell=shell)
                failures = 0
            except Exception as exc:  # noqa: BLE001  # no worker may end the frontend
                failures += quiet
                took_s = time.monotonic() - started
                log.info("canary failed after %.1f s: %s", took_s, mapped(exc))
            if failures >= CANARY_FAILURES_MAX:
                shell.report(ev.WorkerSuspected(member.address.name))

    async def _check_again(self, member: Member, *, quiet: bool, shell: Shell) -> None:
        hosted = await self._calls.hosted(member.address, self._timeout_s)
        if hosted.package != member.package:
            shell.report(ev.WorkerSuspected(member.address.name))
        elif quiet:
            await self._calls.canary(member.address, member.roles, self._timeout_s)

    def _update_ready(self) -> None:
        up = any(m.state == "up" and DEPLOYED in m.roles for m in self.members.values())
        if up:
            self.was_ready = True
            self.ready.set()
        else:
            self.ready.clear()


def _only_moved(known: WorkerAddress, found: WorkerAddress) -> bool:
    """Whether they differ in nothing but the failure domain."""
    return known != found and replace(found, domain=known.domain) == known

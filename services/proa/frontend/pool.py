"""Keeps the workers of one model: canary first, then in service; suspected ones are tried anew,
those that compute wrongly sit out; those that leave finish what they have."""

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
from proa.frontend.integrity import Integrity
from proa.frontend.nursery import Nursery
from proa.frontend.quarantine import Quarantine, Ruling
from proa.frontend.shell import Shell
from proa.frontend.workers import WorkerCalls, mapped
from proa.runtime.waiting import set_within

log = logging.getLogger(__name__)

RETRY_S_MIN, RETRY_S_MAX = 0.1, 1.0
CANARY_FAILURES_MAX = 2
LEAVE_POLL_S = 0.05
LEAVE_S_MAX = 600.0  # what runs at a worker has deadlines; one that leaves is not waited for longer
QUARANTINE_POLL_S = 1.0
# Others that are out only for a moment are no reason to end a quarantine.
ALONE_POLLS_MAX = 3
COMPLAINT_S = 60.0


@dataclass(slots=True)
class Member:
    """One worker. `state`: starting, up, suspected, quarantined or draining; `reason`: why it is
    not up; `tried`: whether a canary has ended, well or not; `successor`: takes its name once it
    left."""

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
        self,
        calls: WorkerCalls,
        nursery: Nursery,
        integrity: Integrity,
        quarantine: Quarantine,
        *,
        canary_s: float,
        timeout_s: float,
    ) -> None:
        self.members: dict[str, Member] = {}
        self.ready = asyncio.Event()
        self.was_ready = False
        self._calls = calls
        self._nursery = nursery
        self.integrity = integrity
        self.quarantine = quarantine
        self._complained_at = -COMPLAINT_S
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

    def fault(self, worker: str, shell: Shell) -> None:
        """`worker` computed wrongly. One that does so too often gets no new work; what runs there
        may finish, as each answer has a verdict of its own."""
        member = self.members.get(worker)
        if member is None or member.state == "draining":
            return
        now = time.monotonic()
        ruling = self.quarantine.fault(
            worker,
            now,
            workers=self._serving(),
            others=self._others_up(member),
            package=member.package,
        )
        if ruling is Ruling.CAPPED:
            self._complain(worker, shell, now)
        elif ruling is Ruling.QUARANTINED and member.state != "quarantined":
            self._take_out(member, now)
            if shell.engine.state.workers.get(worker) is not None:
                shell.draining(worker)
            member.suspected.set()
            log.error(
                "worker quarantined worker=%s model=%s: %s", worker, shell.spec.name, member.reason
            )

    def _complain(self, worker: str, shell: Shell, now: float) -> None:
        self.integrity.capped()
        if now - self._complained_at >= COMPLAINT_S:
            self._complained_at = now
            log.error(
                "worker ought to be in quarantine and serves on: too many are, or none is left"
                " worker=%s model=%s: %s",
                worker,
                shell.spec.name,
                self.quarantine.reason(worker, now),
            )

    def _take_out(self, member: Member, now: float) -> None:
        name = member.address.name
        member.state, member.reason = "quarantined", self.quarantine.reason(name, now)
        member.tried = True
        self.integrity.show(len(self.quarantine.held))
        self._update_ready()

    def _serving(self) -> int:
        """How many workers the model has for queries; those not yet tried may be some."""
        there = [m for m in self.members.values() if m.state != "draining"]
        return sum(not m.roles or DEPLOYED in m.roles for m in there)

    def _others_up(self, member: Member) -> int:
        return sum(
            m.state == "up" and DEPLOYED in m.roles
            for m in self.members.values()
            if m is not member
        )

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
        self._release(name)
        if member.successor is not None:
            self._add(member.successor, shell)

    async def _keep(self, member: Member, shell: Shell) -> None:
        while True:
            if self._held(member):
                await self._sit_out(member)
            await self._try_until_good(member)
            if self._held(member):
                continue
            member.suspected.clear()
            member.state, member.reason = "up", ""
            shell.joined(member.address, member.package, member.roles)
            log.info("worker joined worker=%s model=%s", member.address.name, shell.spec.name)
            self._update_ready()
            await self._watch(member, shell)
            if not self._held(member):
                log.warning("worker suspected worker=%s", member.address.name)

    def _held(self, member: Member) -> bool:
        return self.quarantine.holds(member.address.name, time.monotonic())

    async def _sit_out(self, member: Member) -> None:
        """Returns once the worker has been without a fault for long enough or has restarted, or
        once it is needed, since no other serves."""
        self._take_out(member, time.monotonic())
        name, alone = member.address.name, 0
        restarts = self._calls.meter(name).restarts
        while self._held(member):
            await asyncio.sleep(min(self._canary_s, QUARANTINE_POLL_S))
            alone = 0 if self._others_up(member) else alone + 1
            if await self._restarted(member, restarts):
                self._release(name)
            elif alone >= ALONE_POLLS_MAX:
                log.error("no other worker serves: quarantine ends early worker=%s", name)
                self.quarantine.parole(name)
        self.integrity.show(len(self.quarantine.held))
        member.state, member.reason = "suspected", "out of quarantine, not tried yet"
        log.info("worker leaves quarantine worker=%s", name)

    async def _restarted(self, member: Member, restarts: int) -> bool:
        """Whether another process or another package stands in its place. The canary is for what
        the worker reports with it; a fault that it finds prolongs the quarantine."""
        try:
            hosted = await self._calls.hosted(member.address, self._timeout_s)
            if hosted.package != self.quarantine.package(member.address.name):
                return True
            roles = frozenset((DEPLOYED,)) & self._calls.roles(member.address, hosted)
            await self._calls.canary(member.address, roles, self._timeout_s)
        except Exception as exc:  # noqa: BLE001  # no worker may end the frontend
            log.debug("worker in quarantine: %s", mapped(exc))
        return self._calls.meter(member.address.name).restarts != restarts

    def _release(self, name: str) -> None:
        self.quarantine.forget(name)
        self.integrity.show(len(self.quarantine.held))

    async def _try_until_good(self, member: Member) -> None:
        delay_s = RETRY_S_MIN
        while True:
            try:
                await self._check(member)
            except Exception as exc:  # noqa: BLE001  # no worker may end the frontend
                if self._held(member):
                    return
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

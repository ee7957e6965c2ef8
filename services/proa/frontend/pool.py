"""Keeps the workers of one model: canary first, then in service; suspected ones are tried anew."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from proa.dispatch import events as ev
from proa.dispatch.events import DEPLOYED
from proa.errors import Unavailable
from proa.frontend.addresses import WorkerAddress
from proa.frontend.shell import Shell
from proa.frontend.workers import WorkerCalls, mapped
from proa.runtime.waiting import set_within

log = logging.getLogger(__name__)

RETRY_S_MIN, RETRY_S_MAX = 0.1, 1.0
CANARY_FAILURES_MAX = 2


@dataclass(slots=True)
class Member:
    """One worker. `state`: starting, up, or suspected; `reason`: why it is not up."""

    address: WorkerAddress
    state: str = "starting"
    reason: str = "not tried yet"
    roles: frozenset[str] = frozenset()
    package: str = ""
    suspected: asyncio.Event = field(default_factory=asyncio.Event)


class Pool:
    """The workers of one model. `run` never returns."""

    def __init__(
        self,
        workers: Sequence[WorkerAddress],
        calls: WorkerCalls,
        *,
        canary_s: float,
        timeout_s: float,
    ) -> None:
        self.members = {w.name: Member(w) for w in workers}
        self.ready = asyncio.Event()
        self._calls = calls
        self._canary_s = canary_s
        self._timeout_s = timeout_s

    @property
    def package(self) -> str:
        """The package that most workers in service host; empty where none is."""
        found = [m.package for m in self.members.values() if m.state == "up"]
        return max(set(found), key=found.count, default="")

    def probe(self, worker: str) -> None:
        """The engine no longer trusts `worker`."""
        member = self.members[worker]
        if member.state == "up":
            member.state, member.reason = "suspected", "failed, or did not answer in time"
        member.suspected.set()
        self._update_ready()

    async def run(self, shell: Shell) -> None:
        """Keep every worker; a keeper that ends is an error."""
        async with asyncio.TaskGroup() as group:
            for member in self.members.values():
                group.create_task(self._keep(member, shell))

    async def _keep(self, member: Member, shell: Shell) -> None:
        while True:
            await self._try_until_good(member)
            member.suspected.clear()
            member.state, member.reason = "up", ""
            shell.joined(member.address, member.package, member.roles)
            log.info("worker joined worker=%s", member.address.name)
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
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_S_MAX)
            else:
                return

    async def _check(self, member: Member) -> None:
        member.package, programs = await self._calls.hosted(member.address, self._timeout_s)
        member.roles = self._calls.roles(member.address, programs)
        if not member.roles:
            raise Unavailable(
                f"worker {member.address.name} hosts {', '.join(sorted(programs)) or 'nothing'},"
                " nothing that it is configured for"
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
        package, _ = await self._calls.hosted(member.address, self._timeout_s)
        if package != member.package:
            shell.report(ev.WorkerSuspected(member.address.name))
        elif quiet:
            await self._calls.canary(member.address, member.roles, self._timeout_s)

    def _update_ready(self) -> None:
        up = any(m.state == "up" and DEPLOYED in m.roles for m in self.members.values())
        if up:
            self.ready.set()
        else:
            self.ready.clear()

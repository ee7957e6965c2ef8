"""Composes a shard's agent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import numpy as np
from prometheus_client import CollectorRegistry, ProcessCollector

from proa.errors import ProaError, SettingsError, Unavailable
from proa.rpc import Channels
from proa.runtime.admin import Admin
from proa.runtime.faults import FaultInterceptor, FaultTable, add_faults
from proa.runtime.selfcheck import check_port, keep_checking
from proa.runtime.serve import serve
from proa.runtime.server import add_reflection, listen, make_health, make_server
from proa.runtime.settings import from_env
from proa.runtime.tls import TlsFiles, export_expiry, open_tls
from proa.store.access import TLS_SETTING
from proa.store.faults import DiskFaults
from proa.store.metrics import AgentMetrics, pending
from proa.store.peer import NAME, AgentService, add_peer
from proa.store.post import ROLE, Post
from proa.store.protocol.actions import COORDINATOR, Phase
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows
from proa.store.protocol.storage import View
from proa.store.redis_disk import RedisDisk, RedisViews
from proa.store.scrub import Scrub
from proa.store.settings import AgentSettings
from proa.store.shell import OUT_OF_MEMORY, Shell
from proa.store.tables import Catalogue
from proa.store.told import Told, ask

log = logging.getLogger(__name__)

SPARE_CALLS = 64
MEMORY_S = 0.5
LEAVE_S = 0.02
STUCK_S = 30.0
FULL = 0.95  # of maxmemory: what is under way must still fit
STEPS = ("W1", "W2", "W3", "ACK", "W4")
CRASHES = {"": signal.SIGKILL, "STOP": signal.SIGSTOP}


async def main() -> None:
    await serve_agent(from_env(AgentSettings, os.environ))


async def serve_agent(
    settings: AgentSettings,
    *,
    config: StoreConfig | None = None,
    listening: asyncio.Future[tuple[int, int]] | None = None,
) -> None:
    """Serve until cancelled; `listening` gets the gRPC port and the admin port."""
    tls = open_tls(settings.tls_dir, TLS_SETTING, ROLE)
    channels = Channels(message_bytes_max=settings.message_bytes_max, tls=tls)
    configured = StoreConfig(sweep_rows_per_s_max=settings.sweep_rows_per_s_max)
    agent = _Agent(settings, config or configured, channels, tls)
    try:
        await agent.serve(listening)
    finally:
        await agent.close()


class Stuck:
    """Parity blocks to collect that do not get fewer: rows of their stripes are lost for good, or
    a shard stays away. Waiting for them would hold up every rolling update."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._count, self._since = 0, now()

    def told(self, count: int) -> bool:
        """How many there are now; whether there have been as many for STUCK_S."""
        if count != self._count:
            self._count, self._since = count, self._now()
        return self._now() - self._since > STUCK_S


class _Agent:
    """Its parts, and what they know of the others."""

    def __init__(
        self,
        settings: AgentSettings,
        config: StoreConfig,
        channels: Channels,
        tls: TlsFiles | None,
    ) -> None:
        self._settings, self._channels, self._tls = settings, channels, tls
        self._told: Told | None = None
        self._full = False
        self._stuck = Stuck()
        self._server, self._others = settings.own.server(settings.server), settings.others
        self._post = Post(settings.shard, self._address, channels)
        self._views: RedisViews | None = None
        self._disk: RedisDisk | None = None
        self._faults = DiskFaults(self._server, self._k, self._row)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.shell = Shell(
            settings.shard,
            disk=self._new_disk,
            views=self,
            post=self._post,
            config=config,
            catalogue=self._catalogue,
            is_full=lambda: self._full,
            note=lambda note: self.metrics.noted(note),
            step=crash_at(settings.crash_at),
        )
        self.metrics = AgentMetrics(self.registry, self.shell)

    async def serve(self, listening: asyncio.Future[tuple[int, int]] | None) -> None:
        settings = self._settings
        table = FaultTable(self._faults)
        server = make_server(
            message_bytes_max=settings.message_bytes_max,
            calls_max=settings.calls_max + SPARE_CALLS,
            interceptors=[FaultInterceptor(table, NAME)] if settings.faults else [],
        )
        service = AgentService(self.shell, self._shards, self.metrics.report, self._scrub)
        add_peer(server, service)
        names = [NAME, add_faults(server, table)] if settings.faults else [NAME]
        health = await make_health(server)
        add_reflection(server, names)
        tls = self._tls
        port = listen(server, settings.host, settings.port, tls.server() if tls else None)
        admin = Admin(settings.admin_port, self.registry, settings.host)
        admin.start()
        log.info("listening port=%d", port)
        if listening is not None:
            listening.set_result((port, admin.port))
        ready, draining = asyncio.Event(), asyncio.Event()

        async def check() -> None:
            self._check()
            await check_port(settings.host, port)

        roots: dict[str, Awaitable[None]] = {
            "shell": self.shell.run(),
            "memory": self._watch_memory(),
            "leave": self._leave(draining, service),
            "self-check": keep_checking(check, ready, interval_s=0.2),
        }
        if settings.faults:
            roots["faults"] = self._faults.run()
        if tls is not None:
            export_expiry(self.registry, {"services": tls})
            roots["certificate"] = tls.watch()
            roots["renewals"] = self._hand_on_renewals(tls)
        await serve(
            server,
            health=health,
            admin=admin,
            roots=roots,
            ready=ready,
            grace_s=settings.grace_s,
            on_drain=draining.set,
        )

    async def close(self) -> None:
        await self._post.close()
        if self._views is not None:
            await self._views.close()
        await self._channels.close()

    async def _leave(self, draining: asyncio.Event, service: AgentService) -> None:
        """Pushes under way need the other shards' answers; after the last one nobody does."""
        await draining.wait()
        while True:
            if not self.shell.pushing:
                service.end_streams()
            await asyncio.sleep(LEAVE_S)

    def _check(self) -> None:
        """Errors: Unavailable, until the shard takes pushes and is whole: who takes down shards one
        after the other (a rolling update, the drain of nodes) goes by this."""
        if self._tls is not None:
            self._tls.check()
        agent = self.shell.agent
        if agent is None or agent.phase is not Phase.OPEN:
            phase = "starting" if agent is None else agent.phase.value
            raise Unavailable(f"shard {self._settings.shard} is {phase}")
        rows, parity = pending(agent), len(agent.parity.incomplete)
        stuck = self._stuck.told(parity)
        if rows or (parity and not stuck):
            raise Unavailable(
                f"shard {self._settings.shard}: {rows} rows and {parity} parity blocks to rebuild"
            )

    # --- what the shell asks for

    async def _catalogue(self) -> Catalogue:
        self._told = await ask(self._channels, self._settings.coordinator, None)
        count = self._shards()
        if self._settings.shard >= count:
            raise SettingsError(
                f"PROA_STORE_SHARD={self._settings.shard}: the store has {count} shards"
            )
        if self._views is None:
            servers = {n: self._others.server(at) for n, at in enumerate(self._told.servers)}
            self._views = RedisViews(servers, lambda: self._tables().layout)
        return self._told.catalogue

    def _tables(self) -> Catalogue:
        assert isinstance(self.shell.tables, Catalogue)
        return self.shell.tables

    def _k(self) -> int:
        return self._told.catalogue.k if self._told else 0

    def _row(self, block: Block, row: int) -> str:
        """How people name it."""
        where = f"stripe {block.stripe} position {block.position} row {row}"
        if block.position >= self._k():
            return where
        table, ids = self._tables().ids(block, np.array([row]))
        return f"{where} ({table.name}[{ids[0]}])"

    def _new_disk(self, nonce: int) -> RedisDisk:
        if self._faults.leaving:
            raise Unavailable("an old disk is being put back")
        store = self._told.store if self._told else ""
        self._disk = RedisDisk(self._settings.shard, self._server, nonce, store)
        return self._disk

    async def view(self, shard: int, disk: str, block: Block, rows: Rows) -> View | None:
        """Rows of another shard's disk."""
        assert self._views is not None
        return await self._views.view(shard, disk, block, rows)

    def _scrub(self, rows_per_s_max: int) -> Scrub:
        limit = rows_per_s_max or self._settings.sweep_rows_per_s_max
        return Scrub(self.shell, self, limit, self.metrics.mismatched)

    def _address(self, to: object) -> str:
        if to == COORDINATOR:
            return self._settings.coordinator
        assert self._told is not None
        assert isinstance(to, int)
        return self._told.address(to)

    def _shards(self) -> int:
        return len(self._told.agents) if self._told else 0

    async def _hand_on_renewals(self, tls: TlsFiles) -> None:
        """The server of our pod has our certificate, and no eyes for its files."""
        version = tls.version
        while True:
            await tls.renewed(version)
            version = tls.version
            while self._server.ca and not await self._handed_on():  # noqa: ASYNC110  # retries
                await asyncio.sleep(MEMORY_S)

    async def _handed_on(self) -> bool:
        if self._disk is None:
            return False
        try:
            await self._disk.renew_certificate(str(self._settings.tls_dir))
        except ProaError as exc:
            log.warning("shard %d: %s", self._settings.shard, exc)
            return False
        return True

    async def _watch_memory(self) -> None:
        """Of our own server and of those that hold our parity: a push needs room on all. A server
        that is gone is noticed here when nobody pushes."""
        while True:
            await asyncio.sleep(MEMORY_S)
            agent, disk = self.shell.agent, self._disk
            if disk is None or agent is None or self._views is None:
                continue
            try:
                own = await disk.memory()
            except ProaError as exc:
                self.shell.lost_disk(agent, f"its disk does not answer: {exc}")
                continue
            self.metrics.memory(own[0])
            found = {agent.shard: own}
            for shard in agent.owner.state.parity_shards:
                if agent.map.version >= 0 and agent.map.shards[shard].up:
                    found[shard] = await self._views.memory(shard) or (0, 0)
            full = [shard for shard, (used, most) in found.items() if used > FULL * most > 0]
            if full and not self._full:
                log.warning("no pushes are taken: memory is full on shards %s", full)
            self._full = bool(full)
            if full:
                self.shell.give_up(OUT_OF_MEMORY)


def crash_at(text: str) -> Callable[[str], None]:
    """For tests: a signal to oneself at the Nth time of a step. Errors: SettingsError."""
    if not text:
        return lambda _step: None
    step, _, rest = text.partition(":")
    number, _, name = rest.partition(":")
    if step not in STEPS or not number.isdigit() or name not in CRASHES:
        raise SettingsError(
            f"PROA_STORE_CRASH_AT={text!r} is not STEP:N or STEP:N:STOP with STEP of"
            f" {', '.join(STEPS)}"
        )
    seen: Counter[str] = Counter()

    def told(now: str) -> None:
        seen[now] += 1
        if now == step and seen[now] == int(number):
            os.kill(os.getpid(), CRASHES[name])

    return told

"""Runs one shard's agent: performs its actions, brings it its events (see `protocol.agent`).

One event loop, no locks: every event is handled at once when it comes, and what the disk is asked
to do is done in the order given. The protocol bears any loss of messages, so nothing here retries.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Protocol

from proa.errors import ProaError, Unavailable
from proa.store.gf256 import Bytes
from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol.agent import Agent
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows
from proa.store.protocol.pushes import Update
from proa.store.protocol.rowset import RowSet
from proa.store.protocol.storage import ShardImage, View

log = logging.getLogger(__name__)

TICK_S = 0.05
MANY_STRIPES = 4096
RETRY_S = 0.2  # a disk that cannot be reached, or is full, is asked again after so long
OUT_OF_MEMORY = "out of memory"


Done = ac.Committed | ac.CommitFailed | ac.Fetched


class Disk(Protocol):
    """One shard's Redis or Valkey. Errors: ProaError where it cannot be reached."""

    async def image(self, layout: Layout) -> ShardImage: ...
    async def perform(self, actions: list[ac.Commit | ac.Fetch]) -> Sequence[Done]:
        """In this order; an event for each. Fewer: it is out of memory, and did nothing of the
        rest."""

    def extend(self, layout: Layout) -> None: ...
    async def close(self) -> None: ...


class Views(Protocol):
    """Reads of other shards' disks; None where one cannot be reached or is another disk."""

    async def view(self, shard: int, disk: str, block: Block, rows: Rows) -> View | None: ...


class Post(Protocol):
    """Takes messages to shards (by number) and to the coordinator; may lose them."""

    def send(self, to: Hashable, message: ms.Message) -> None: ...


class Tables(Protocol):
    """The tables of the store, as a catalogue has them."""

    @property
    def layout(self) -> Layout: ...
    @property
    def update(self) -> Update: ...
    def check(self, block: Block, rows: Rows, payload: Bytes) -> None:
        """Errors: InvalidRequest, of a part that no owner may take."""

    def padding(self, block: Block) -> RowSet:
        """Rows of a data block that no table has."""


PushAnswer = ms.PushDone | ms.PushRefused


class Caller:
    """Where the answer to one push goes; the first one counts."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[PushAnswer] = asyncio.get_running_loop().create_future()

    def take(self, message: ms.Message) -> None:
        if isinstance(message, PushAnswer) and not self.answer.done():
            self.answer.set_result(message)

    def give_up(self, why: str) -> None:
        """Nobody can answer soon; the push may have been written."""
        if not self.answer.done():
            self.answer.set_exception(Unavailable(f"{why}; push again"))


class Shell:
    """`run` is a root task. `disk`: a new one for every start, by a number of its own; `catalogue`:
    the tables as they are now; `is_full`: its memory is: no pushes are taken, nothing else suffers;
    `step`: told of W1 to W4, and of a parity block's ACK, as they happen, for tests that kill the
    process there."""

    def __init__(
        self,
        shard: int,
        *,
        disk: Callable[[int], Disk],
        views: Views,
        post: Post,
        config: StoreConfig,
        catalogue: Callable[[], Awaitable[Tables]],
        is_full: Callable[[], bool] = lambda: False,
        note: Callable[[ac.Note], None] = lambda _note: None,
        step: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self.shard = shard
        self.config = config
        self._new_disk, self._views, self._post = disk, views, post
        self._catalogue, self._note, self._step = catalogue, note, step
        self.is_full = is_full
        self.starved = False  # the disk has no memory for what it was given last
        self.agent: Agent | None = None
        self.tables: Tables | None = None
        self.starts = 0
        self.pushes = 0  # acknowledged
        self._disk: Disk | None = None
        self._work: deque[ac.Commit | ac.Fetch] = deque()
        self._some_work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._growing = False
        self._callers: set[Caller] = set()
        self._deposed = asyncio.Event()

    async def run(self) -> None:
        """Start the agent, tick, start it again when it was deposed. Never returns."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._disk_task())
            while True:
                await self._start()
                while not self._deposed.is_set():
                    self.handle(ac.Ticked())
                    await asyncio.sleep(TICK_S)
                self.agent = None
                self.give_up("the agent lost its shard")
                await self._idle.wait()  # what the disk was given is done before it is read

    def receive(self, sender: Hashable, message: ms.Message) -> None:
        """A message of a shard, of the coordinator or of a Caller came."""
        self.handle(ac.Received(sender, message))

    def refusal(self, push: ms.Push) -> ms.PushRefused | None:
        """Why a push is not taken, as far as that can be told without its blocks. Errors:
        InvalidRequest, naming table and ids."""
        agent = self.agent
        why = None
        if agent is None or self.tables is None or not agent.running:
            why = ms.Refusal.NOT_OWNER
        elif push.epoch != agent.epoch:
            why = ms.Refusal.STALE_MAP
        elif (self.starved or self.is_full()) and _needs_memory(agent, push):
            why = ms.Refusal.OUT_OF_MEMORY
        else:
            self.check(push)
        return None if why is None else ms.PushRefused(push.worker, push.step, why)

    def check(self, push: ms.Push) -> None:
        """Errors: InvalidRequest, naming table and ids."""
        for part in push.parts:
            assert self.tables is not None
            self.tables.check(part.block, part.rows, part.payload)

    def lost_disk(self, agent: Agent, why: str) -> None:
        """The disk of this agent is gone: it starts again, with what is there then."""
        if self.agent is agent and not self._deposed.is_set():
            self._depose(why)

    def give_up(self, why: str) -> None:
        """Whoever waits for an answer is told to push again."""
        for caller in self._callers:
            caller.give_up(why)

    @property
    def pushing(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._callers)

    async def push(self, push: ms.Push) -> PushAnswer:
        """Answered when it survives r losses, or refused whole. Errors: Unavailable, of a push that
        may have been written: the same push again tells."""
        agent = self.agent
        if agent is None or not agent.running:
            return ms.PushRefused(push.worker, push.step, ms.Refusal.NOT_OWNER)
        caller = Caller()
        self._step("W1")
        self._callers.add(caller)
        try:
            self.receive(caller, push)
            answer = await caller.answer
            self.pushes += isinstance(answer, ms.PushDone)
            return answer
        finally:
            self._callers.discard(caller)

    def handle(self, event: ac.Event) -> None:
        """Let the agent take in an event, perform what it calls for."""
        if self.agent is None:
            return
        now = asyncio.get_running_loop().time()
        for action in self.agent.handle(event, now):
            self._perform(action)

    # --- life

    async def _start(self) -> None:
        self._deposed.clear()
        while True:
            disk = None
            nonce = secrets.randbits(62)
            try:
                tables = await self._catalogue()
                disk = self._new_disk(nonce)
                image = await disk.image(tables.layout)
                break
            except ProaError as exc:
                log.warning("shard %d cannot start: %s", self.shard, exc)
                if disk is not None:
                    await disk.close()
                await asyncio.sleep(RETRY_S)
        old, self._disk, self.tables = self._disk, disk, tables
        if old is not None:
            await old.close()
        self.agent = Agent(
            tables.layout, self.shard, self.config, image, self._update, nonce, self._padding
        )
        if tables.layout.stripes > MANY_STRIPES:
            # Walks of the garbage collector over all of them would take longer than a heartbeat.
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        self.starts += 1
        log.info("agent starts shard=%d disk=%s stamp=%d", self.shard, image.disk, image.stamp)

    def _padding(self, block: Block) -> RowSet:
        assert self.tables is not None
        return self.tables.padding(block)

    def _update(self, block: Block, rows: Rows, old: Bytes, payload: Bytes) -> Bytes:
        assert self.tables is not None
        return self.tables.update(block, rows, old, payload)

    # --- actions

    def _perform(self, action: ac.Action) -> None:
        match action:
            case ac.Send(to, message):
                self._send(to, message)
            case ac.Commit() | ac.Fetch():
                self._work.append(action)
                self._idle.clear()
                self._some_work.set()
            case ac.Read():
                self._spawn(self._read(action))
            case ac.Grow(stripes):
                if not self._growing:
                    self._growing = True
                    self._spawn(self._grow(stripes))
            case ac.Restart(why):
                self._depose(why)
            case ac.Note():
                self._note(action)
            case ac.Persist():
                raise AssertionError("only a coordinator persists maps")

    def _send(self, to: Hashable, message: ms.Message) -> None:
        if isinstance(message, ms.Delta):
            self._step("W3")
        if isinstance(message, ms.Ack):
            self._step("ACK")
        if isinstance(to, Caller):
            self._step("W4")
            to.take(message)
        else:
            self._post.send(to, message)

    def _depose(self, why: str) -> None:
        log.warning("agent of shard %d starts again: %s", self.shard, why)
        self._deposed.set()

    async def _read(self, read: ac.Read) -> None:
        agent = self.agent
        view = await self._views.view(read.shard, read.disk, read.block, read.rows)
        if self.agent is agent:
            self.handle(ac.ReadDone(read.ticket, view))

    async def _grow(self, stripes: int) -> None:
        """Tables were added: take them in."""
        try:
            tables = await self._catalogue()
            if tables.layout.stripes >= stripes and self.agent is not None:
                assert self._disk is not None
                self.tables = tables
                self._disk.extend(tables.layout)
                self.handle(ac.Extended(tables.layout))
        except ProaError as exc:
            log.warning("the tables cannot be read: %s", exc)  # asked for again
        finally:
            self._growing = False

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """An error in it is a defect of ours: said at once, and the agent begins anew."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("shard %d: a task failed", self.shard, exc_info=task.exception())
            self._depose("a task failed")

    async def _disk_task(self) -> None:
        """Commits and fetches in order; those of an agent that is gone, too. Never returns.

        What the disk has no memory for waits, and all after it; to the agent, the disk is slow.
        """
        while True:
            await self._some_work.wait()
            agent, some = self.agent, list(self._work)
            events = await self._at_disk(some)
            is_gone = agent is None or self.agent is not agent
            starved = events is not None and len(events) < len(some)
            if is_gone and starved:
                self._work.clear()  # as if it had died: nothing after it may be written either
            else:
                for _ in some if events is None else events:
                    self._work.popleft()
            if not self._work:
                self._some_work.clear()
                self._idle.set()
            if not is_gone:
                self._performed(events)
            self._starves(starved)
            if starved:
                self.give_up(OUT_OF_MEMORY)
                await asyncio.sleep(RETRY_S)

    def _performed(self, events: Sequence[Done] | None) -> None:
        if events is None:
            assert self.agent is not None
            self.lost_disk(self.agent, "its disk does not answer")
        for event in events or ():
            self.handle(event)

    def _starves(self, starved: bool) -> None:
        if starved != self.starved:
            self.starved = starved
            what = "has no memory for a commit" if starved else "takes commits again"
            log.warning("the disk of shard %d %s", self.shard, what)

    async def _at_disk(self, some: list[ac.Commit | ac.Fetch]) -> Sequence[Done] | None:
        """How each went. None: the disk failed; what of it was written is not known."""
        assert self._disk is not None
        try:
            events = await self._disk.perform(some)
        except ProaError as exc:
            log.warning("the disk of shard %d fails: %s", self.shard, exc)
            return None
        if any(isinstance(event, ac.Committed) for event in events):
            self._step("W2")
        return events


def _needs_memory(agent: Agent, push: ms.Push) -> bool:
    """Whether a part of it is not in its block yet."""
    blocks = agent.owner.state.blocks
    return any(
        part.block not in blocks or not blocks[part.block].sessions.includes(push.worker, push.step)
        for part in push.parts
    )

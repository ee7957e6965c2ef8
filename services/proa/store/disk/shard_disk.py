"""A shard's own disk: loads its image, performs Commits and Fetches, lets no deposed owner write.

Who writes is a token under `owner`. A process takes it when it starts; every transaction runs under
a WATCH on it, set and compared right after the transaction before, so it costs no round trip: once
another process took the disk, EXEC does nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from proa.errors import InvalidRequest, ShardUnavailable
from proa.store.disk import codec
from proa.store.disk import commands as cm
from proa.store.disk.plan import Plan, Records, ShardState, parity_rows
from proa.store.gf256 import Bytes
from proa.store.protocol import actions as ac
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Rows
from proa.store.protocol.records import unpack, unpack_blocks
from proa.store.protocol.storage import (
    BlockImage,
    BlockMeta,
    ShardImage,
    StripeImage,
    StripeMeta,
    Write,
)

log = logging.getLogger(__name__)

BLOCKS_AT_ONCE = 512  # read in one exchange when an image is loaded
COMMITS_AT_ONCE = 256  # merged into one transaction
WRITES_AT_ONCE = 1024  # of them
EVICTION = "noeviction"
OLDEST = {"valkey": (8, 0), "redis": (7, 0)}


class Deposed(ShardUnavailable):
    """Another process has taken the disk, or its memory was emptied."""


class ShardDisk:
    """nonce: of this process; no two processes have the same. store: names the store that the disk
    belongs to; a disk of another one is refused (InvalidRequest)."""

    def __init__(self, shard: int, nonce: int, store: str = "") -> None:
        self.shard, self.store = shard, store
        self._token = str(nonce).encode()
        self._is_deposed = False
        self.state = ShardState(shard, Layout(1, 0, shard + 1))

    def extend(self, layout: Layout) -> None:
        """Tables were added."""
        self.state.layout = layout

    # --- the image

    def image(self, layout: Layout) -> cm.Steps[ShardImage]:
        """Take the disk and read what it holds beside rows. Errors: ShardUnavailable,
        InvalidRequest for a server that evicts, is too old, or has another store's data."""
        self.state = ShardState(self.shard, layout)
        replies = yield [("INFO", "server"), ("INFO", "memory")]
        disk = check(*(cm.info(reply) for reply in replies))
        yield from self._take()
        stamp, fences, names = yield [
            ("GET", cm.STAMP), ("HGETALL", cm.FENCES), ("HKEYS", cm.METAS),
        ]  # fmt: skip
        self.state.fences = {int(s): int(epoch) for s, epoch in _pairs(fences)}
        blocks: dict[Block, BlockImage] = {}
        stripes: dict[int, StripeImage] = {}
        known = sorted(codec.read_field(name) for name in names)
        known = [block for block in known if block.stripe < layout.stripes]
        for at in range(0, len(known), BLOCKS_AT_ONCE):
            yield from self._load(known[at : at + BLOCKS_AT_ONCE], blocks, stripes)
        return ShardImage(disk, int(stamp or 0), dict(self.state.fences), blocks, stripes)

    def _take(self) -> cm.Steps[None]:
        self._is_deposed = False
        _, found = good((yield [("SET", cm.STORE, self.store, "NX"), ("GET", cm.STORE)]))
        if found.decode() != self.store:
            raise InvalidRequest(
                f"the disk belongs to store {found.decode()!r}, not {self.store!r}"
            )
        good((yield [("UNWATCH",), ("SET", cm.OWNER, self._token)]))
        self._compare((yield self._watch()))

    def _watch(self) -> list[cm.Command]:
        return [("WATCH", cm.OWNER), ("GET", cm.OWNER)]

    def _compare(self, replies: Sequence[Any]) -> None:
        if replies[-1] != self._token:
            raise self._deposed()

    def _deposed(self) -> Deposed:
        """For good: a transaction after the refused one would run under a watch that was set after
        the other process took the disk, and be written."""
        self._is_deposed = True
        return Deposed(f"another process has taken the disk of shard {self.shard}")

    def _load(
        self, chosen: list[Block], blocks: dict[Block, BlockImage], stripes: dict[int, StripeImage]
    ) -> cm.Steps[None]:
        names = [codec.block_field(block) for block in chosen]
        logs = {block: self._log_keys(block) for block in chosen}
        replies = yield [
            ("HMGET", cm.METAS, *names),
            ("HMGET", cm.SESSIONS, *names),
            *(("LRANGE", key, 0, -1) for keys in logs.values() for key in keys),
        ]
        metas, sessions, *rest = replies
        lists = iter(rest)
        for block, value, session in zip(chosen, metas, sessions, strict=True):
            found = [codec.read_log(next(lists)) for _ in logs[block]]
            try:
                meta, touched = codec.read_meta(value)
                entries = [_whole(log) for log in found]
                if isinstance(meta, StripeMeta):
                    stripes[block.stripe] = _stripe_image(meta, session, entries)
                else:
                    blocks[block] = _block_image(meta, session, entries[0])
            except codec.BadDisk as exc:
                # As if the disk had never heard of it: it is rebuilt from others, or reset.
                log.warning("shard %d: %s is left out: %s", self.shard, block, exc)
                self.state.logs.update((key, [-1]) for key in logs[block])
                continue
            self.state.touched[block] = touched
            for key, some in zip(logs[block], entries, strict=True):
                self.state.logs[key] = [entry.to for entry in some]

    def _log_keys(self, block: Block) -> list[bytes]:
        k = self.state.layout.k
        if block.position < k:
            return [cm.outbox_key(block)]
        return [cm.undo_key(block, member) for member in range(k)]

    # --- actions

    def perform(
        self, actions: Sequence[ac.Commit | ac.Fetch]
    ) -> cm.Steps[list[ac.Committed | ac.CommitFailed | ac.Fetched]]:
        """In this order; an event for each, up to the first commit that finds the server out of
        memory: from there on nothing was done. Errors: ShardUnavailable; then it is not known what
        of it is on the disk."""
        events: list[ac.Committed | ac.CommitFailed | ac.Fetched] = []
        for kind, some in groupby(actions, type):
            found: list[Any] = list(some)
            if kind is ac.Fetch:
                events += yield from self._fetches(found)
                continue
            for part in _transactions(found):
                done = yield from self._commits(part)
                if done is None:
                    return events
                events += done
        return events

    def fetch(self, rows: Mapping[Block, Rows]) -> cm.Steps[ac.Found]:
        """Rows of own blocks, with the indices of those that are erasures."""
        (event,) = yield from self._fetches([ac.Fetch(0, rows)])
        return event.found

    def commit(self, writes: tuple[Write, ...]) -> cm.Steps[tuple[int, ...] | None]:
        """None: it is on the disk. Else the stripes for which nothing was written, none where the
        disk is full."""
        events = yield from self._commits([ac.Commit(0, writes)])
        if events is None:
            return ()
        return events[0].stripes if isinstance(events[0], ac.CommitFailed) else None

    def _fetches(self, fetches: list[ac.Fetch]) -> cm.Steps[list[ac.Fetched]]:
        asked = [(block, rows) for fetch in fetches for block, rows in fetch.rows.items()]
        replies = good((yield [cm.get_rows(block, rows) for block, rows in asked]))
        found = iter(self._unpacked(asked, replies))
        return [
            ac.Fetched(fetch.ticket, {block: next(found) for block in fetch.rows})
            for fetch in fetches
        ]

    def _unpacked(
        self, asked: list[tuple[Block, Rows]], replies: Sequence[list[bytes | None]]
    ) -> Iterator[tuple[Bytes, frozenset[int]]]:
        widths = [self.state.layout.extent_of(block.stripe).width for block, _ in asked]
        whole = unpack_blocks([*zip(replies, widths, strict=True)])
        for (block, rows), records, width, data in zip(asked, replies, widths, whole, strict=True):
            touched = codec.Touched(self.state.touched.get(block, b""))
            yield unpack(rows, records, touched, width) if data is None else (data, frozenset())

    def _commits(
        self, commits: list[ac.Commit]
    ) -> Generator[list[cm.Command], list[Any], list[ac.Committed | ac.CommitFailed] | None]:
        """None: the server has no memory for them, and has nothing of them."""
        wanted = parity_rows(self.state, (commit.writes for commit in commits))
        kept = self.state.kept
        records: Records = {block: {**kept.take(block, rows)} for block, rows in wanted.items()}
        rows = {
            block: np.array(sorted(rest), np.intp)
            for block, found in wanted.items()
            if (rest := found - records[block].keys())
        }
        if rows:
            replies = good((yield [cm.get_rows(block, found) for block, found in rows.items()]))
            for (block, found), reply in zip(rows.items(), replies, strict=True):
                records[block].update(zip(found.tolist(), reply, strict=True))
        plan = Plan(self.state, records)
        bad = {commit.ticket: plan.add(commit.writes) for commit in commits}
        commands = plan.finish()
        if commands and not (yield from self._execute(commands)):
            return None
        plan.executed()
        return [
            ac.CommitFailed(ticket, stripes) if stripes else ac.Committed(ticket)
            for ticket, stripes in bad.items()
        ]

    def _execute(self, commands: list[cm.Command]) -> cm.Steps[bool]:
        """False: the server has no memory for it, and took nothing of it."""
        if self._is_deposed:
            raise self._deposed()
        replies = yield [("MULTI",), *commands, ("EXEC",), *self._watch()]
        done = replies[len(commands) + 1]
        if done is None:
            raise self._deposed()
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        if not refused:
            self._compare(replies)
            for reply in done:
                if isinstance(reply, Exception):
                    raise ShardUnavailable(f"the server refused: {reply}") from reply
            return True
        if any(str(reply).startswith(("OOM", "MISCONF")) or _is_full(reply) for reply in refused):
            self._compare(replies)
            return False
        raise ShardUnavailable(f"the server refused: {refused[0]}") from refused[0]


def _transactions(commits: list[ac.Commit]) -> Iterator[list[ac.Commit]]:
    part: list[ac.Commit] = []
    size = 0
    for commit in commits:
        if part and (len(part) >= COMMITS_AT_ONCE or size + len(commit.writes) > WRITES_AT_ONCE):
            yield part
            part, size = [], 0
        part.append(commit)
        size += len(commit.writes)
    yield part


def good(replies: Sequence[Any]) -> Sequence[Any]:
    """Errors: ShardUnavailable if one of them is an error of the server."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise ShardUnavailable(f"the server refused: {reply}") from reply
    return replies


def check(server: Mapping[str, str], memory: Mapping[str, str]) -> str:
    """The name of a server's life, if it is one we can use. Errors: InvalidRequest."""
    kind = "valkey" if "valkey_version" in server else "redis"
    version = server[f"{kind}_version"]
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST[kind]:
        oldest = ".".join(map(str, OLDEST[kind]))
        raise InvalidRequest(f"{kind} {version} is older than {oldest}")
    policy = memory.get("maxmemory_policy", EVICTION)
    if policy != EVICTION:
        raise InvalidRequest(
            f"maxmemory-policy = {policy}: a store that evicts loses rows; set {EVICTION}"
        )
    return server["run_id"]


def _pairs(reply: Any) -> list[tuple[bytes, bytes]]:
    """HGETALL's answer in RESP2 or RESP3."""
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))


def _is_full(error: Exception) -> bool:
    """redis-py makes a class of the code and strips it from the text."""
    return type(error).__name__ == "OutOfMemoryError"


def _whole(log: tuple[Entry, ...] | None) -> tuple[Entry, ...]:
    if log is None:
        raise codec.BadDisk("an entry of a log is not what was written")
    return log


def _block_image(meta: BlockMeta, sessions: bytes, log: tuple[Entry, ...]) -> BlockImage:
    found = codec.read_sessions(sessions)
    return BlockImage(BlockMeta(meta.epoch, meta.version, found, meta.pending, meta.lost), log)


def _stripe_image(meta: StripeMeta, sessions: bytes, logs: list[tuple[Entry, ...]]) -> StripeImage:
    found = codec.read_vector_sessions(sessions)
    vector = {m: codec.with_sessions(applied, found[m]) for m, applied in meta.vector.items()}
    undo = {member: log for member, log in enumerate(logs) if log}
    return StripeImage(StripeMeta(meta.term, vector), undo)

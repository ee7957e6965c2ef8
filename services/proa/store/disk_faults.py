"""What faults do to the disk of a shard: exchanges with its server, without I/O.

They send no command that an agent does not send anyhow, beside SHUTDOWN.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proa.errors import EnvironmentLacks, InvalidRequest, Overloaded, ShardUnavailable
from proa.store.disk import commands as cm
from proa.store.disk.codec import read_field
from proa.store.disk.shard_disk import good
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows

COPY_BYTES_MAX = 256 << 20  # of a server's memory, all of which an agent would hold too
EXCHANGE_BYTES = 4 << 20  # sent at once when a copy is put back
TRIES_MAX = 100

_STRINGS = (cm.STORE, cm.STAMP, cm.OWNER)
_HASHES = (cm.FENCES, cm.SESSIONS, cm.METAS)


@dataclass(frozen=True)
class Flip:
    """A bit that was flipped: `bit` of the record of `row`, its checksum included."""

    block: Block
    row: int
    bit: int


# --- bits


def flip(k: int, program: str, bits: int, dice: random.Random) -> cm.Steps[list[Flip]]:
    """Flip `bits` bits of stored rows, each in a block drawn anew. `program`: of data or parity;
    empty: of both. Errors: InvalidRequest where too few are stored, ShardUnavailable."""
    wanted = {"": range(1 << 32), "data": range(k), "parity": range(k, 1 << 32)}[program]
    blocks = [block for block in (yield from _blocks()) if block.position in wanted]
    chosen: Counter[Block] = Counter()
    rows: dict[Block, list[int]] = {}
    while (missing := bits - chosen.total()) and blocks:
        drawn = Counter(dice.choices(blocks, k=missing))
        names = good((yield [("HKEYS", cm.rows_key(block)) for block in drawn]))
        for block, some in zip(drawn, names, strict=True):
            rows[block] = sorted(int.from_bytes(name, "little") for name in some)
        chosen += Counter({block: count for block, count in drawn.items() if rows[block]})
        blocks = [block for block in blocks if rows.get(block, True)]
    if missing:
        raise InvalidRequest(f"fault: no {program or 'data or parity'} rows are stored here")
    done: list[Flip] = []
    for block, count in sorted(chosen.items()):
        done += yield from _flip_in(block, rows[block], count, dice)
    return done


def _flip_in(
    block: Block, stored: Sequence[int], count: int, dice: random.Random
) -> cm.Steps[list[Flip]]:
    key = cm.rows_key(block)
    (sample,) = yield [cm.get_rows(block, _rows(stored[:1]))]
    size = 8 * len(sample[0] or b"")
    if count > size * len(stored):
        raise InvalidRequest(f"fault: {block} has fewer than {count} bits")
    drawn = dice.sample(range(size * len(stored)), count)
    flips = [Flip(block, stored[at // size], at % size) for at in sorted(drawn)]
    rows = _rows(sorted({one.row for one in flips}))
    for _ in range(TRIES_MAX):
        _, records = good((yield [("WATCH", key), cm.get_rows(block, rows)]))
        if any(record is None or 8 * len(record) != size for record in records):
            break
        wrong = {row: bytearray(record) for row, record in zip(rows.tolist(), records, strict=True)}
        for one in flips:
            wrong[one.row][one.bit // 8] ^= 1 << one.bit % 8
        put = cm.set_rows(block, rows, [bytes(record) for record in wrong.values()])
        if good((yield [("MULTI",), put, ("EXEC",)]))[-1] is not None:
            return flips
    good((yield [("UNWATCH",)]))
    raise ShardUnavailable(f"{block}: its rows change too fast to flip bits of them; try again")


# --- copies


@dataclass(frozen=True)
class Copy:
    """Commands that make an empty server what the copied one was, rows before metas."""

    commands: list[cm.Command]


def copy(k: int, bytes_max: int = COPY_BYTES_MAX) -> cm.Steps[Copy]:
    """All of one moment. Errors: Overloaded (it is larger than `bytes_max`), ShardUnavailable."""
    (reply,) = yield [("INFO", "memory")]
    used = int(cm.info(reply)["used_memory"])
    if used > bytes_max:
        raise Overloaded(f"the disk has {used} bytes, and an agent copies {bytes_max} at most")
    for _ in range(TRIES_MAX):
        blocks = yield from _blocks()
        keys = [*_keys(blocks, k), *_HASHES, *_STRINGS]
        asked: list[cm.Command] = [(_verbs(key)[0], key, *_verbs(key)[2]) for key in keys]
        replies = good(good((yield [("MULTI",), *asked, ("EXEC",)]))[-1])
        found = dict(zip(keys, map(_list, replies), strict=True))
        if sorted(read_field(name) for name in found[cm.METAS][::2]) == blocks:
            return Copy([(_verbs(key)[1], key, *value) for key, value in found.items() if value])
    raise ShardUnavailable("tables are being added all the time; try again")


def put_back(found: Copy, k: int) -> cm.Steps[None]:
    """Make the server what was copied; nobody else may use it meanwhile. Errors:
    ShardUnavailable."""
    old = (*_keys((yield from _blocks()), k), *_HASHES, *_STRINGS)
    good((yield [("UNLINK", *old)]))
    batch: list[cm.Command] = []
    size = 0
    for command in found.commands:
        batch.append(command)
        size += sum(len(part) for part in command if isinstance(part, bytes))
        if size > EXCHANGE_BYTES:
            good((yield batch))
            batch, size = [], 0
    good((yield batch))


def may_shut_down() -> cm.Steps[None]:
    """Errors: EnvironmentLacks where our user may not end the server."""
    (reply,) = yield [("SHUTDOWN", "ABORT")]  # of nothing: an error of another kind, if we may
    if str(reply).startswith("NOPERM") or type(reply).__name__ == "NoPermissionError":
        raise EnvironmentLacks(f"the agent's user needs +shutdown at its server: {reply}")


def shutdown() -> cm.Steps[None]:
    """End the server's life. Errors: ShardUnavailable, as it goes."""
    good((yield [("SHUTDOWN", "NOSAVE")]))


# --- keys


def _blocks() -> cm.Steps[list[Block]]:
    (names,) = good((yield [("HKEYS", cm.METAS)]))
    return sorted(read_field(name) for name in names)


def _keys(blocks: Iterable[Block], k: int) -> list[bytes]:
    """Of the rows and logs of these blocks."""
    keys = []
    for block in blocks:
        keys.append(cm.rows_key(block))
        if block.position < k:
            keys.append(cm.outbox_key(block))
        else:
            keys += [cm.undo_key(block, member) for member in range(k)]
    return keys


def _verbs(key: bytes) -> tuple[str, str, tuple[int, ...]]:
    """What reads all of it, what writes it, and what the reading one says after the key."""
    if key in _STRINGS:
        return "GET", "SET", ()
    if key in _HASHES or key.startswith(b"r:"):
        return "HGETALL", "HSET", ()
    return "LRANGE", "RPUSH", (0, -1)


def _list(reply: Any) -> list[bytes]:
    if reply is None:
        return []
    return [reply] if isinstance(reply, bytes) else list(reply)


def _rows(found: Sequence[int]) -> Rows:
    return np.array(found, np.intp)

"""Keys of a shard's server, and exchanges with it without I/O.

owner, store, stamp   strings: who writes, of which store, under which epoch
fences                hash: shard -> epoch
metas, sessions       hashes: block -> `codec`; their keys are the index of the blocks
r:STRIPE:POSITION     hash: row as uint32 -> record (`protocol.records`)
o:STRIPE:POSITION     list: the outbox of a data block, oldest first
u:STRIPE:POSITION:I   list: the undo ring of a parity block for member I
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from proa.errors import ShardUnavailable
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Rows

Command = tuple[bytes | str | int, ...]
T = TypeVar("T")
# Yields commands to send at once, gets a reply for each: errors of the server as values.
Steps = Generator[list[Command], list[Any], T]

OWNER, STORE, STAMP = b"owner", b"store", b"stamp"
FENCES, METAS, SESSIONS = b"fences", b"metas", b"sessions"
ALIKE_MIN = 8  # parts; below, looking for them costs more than it saves


def info(reply: Any) -> dict[str, str]:
    """What INFO says, by name. Errors: ShardUnavailable where the server refused it."""
    if isinstance(reply, Exception):
        raise ShardUnavailable(f"the server refused: {reply}") from reply
    lines = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def packed(commands: Sequence[Command]) -> bytes:
    """The bytes to send, as the protocol of Redis wants them. A hundred thousand rows a second go
    through here, which is why it is not left to the library."""
    found = []
    for command in commands:
        found.append(b"*%d\r\n" % len(command))
        rows = _alike(command[2:]) if len(command) > ALIKE_MIN else b""
        for one in command[:2] if rows else command:
            part = one if type(one) is bytes else str(one).encode()
            found.append(b"$%d\r\n%b\r\n" % (len(part), part))
        found.append(rows)
    return b"".join(found)


def _alike(parts: tuple[Any, ...]) -> bytes:
    """Fields, or fields and values in turn, each of one size: what commands of rows are made of.
    Nothing: they are something else."""
    if set(map(type, parts)) != {bytes}:
        return b""
    sizes = set(map(len, parts))
    if len(sizes) == 1:
        head = b"$%d\r\n" % sizes.pop()
        return head + (b"\r\n" + head).join(parts) + b"\r\n"
    first, second = set(map(len, parts[::2])), set(map(len, parts[1::2]))
    if len(first) > 1 or len(second) > 1 or len(parts) % 2:
        return b""
    pattern = b"$%d\r\n%%b\r\n$%d\r\n%%b\r\n" % (first.pop(), second.pop())
    found: bytes = pattern * (len(parts) // 2) % parts
    return found


def rows_key(block: Block) -> bytes:
    return b"r:%d:%d" % block


def outbox_key(block: Block) -> bytes:
    return b"o:%d:%d" % block


def undo_key(block: Block, member: int) -> bytes:
    return b"u:%d:%d:%d" % (*block, member)


def fields(rows: Rows) -> list[bytes]:
    """The fields of these rows in the hash of their block."""
    found: list[bytes] = rows.astype("<u4").view("V4").tolist()
    return found


def get_rows(block: Block, rows: Rows) -> Command:
    return ("HMGET", rows_key(block), *fields(rows))


def set_rows(block: Block, rows: Rows, records: Sequence[bytes]) -> Command:
    pairs = [part for pair in zip(fields(rows), records, strict=True) for part in pair]
    return ("HSET", rows_key(block), *pairs)

"""How a disk writes down metas, sessions and log entries: little-endian, of fixed width.

Each ends with a crc32 of all of it, metas begin with FORMAT; what is anything else is BadDisk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from proa.errors import ShardUnavailable
from proa.store.gf256 import Bytes
from proa.store.protocol.layout import Block
from proa.store.protocol.log import NO_SESSIONS, Entry, Mark, Rows, Sessions
from proa.store.protocol.rowset import RowSet
from proa.store.protocol.storage import Applied, BlockMeta, StripeMeta

FORMAT = 1
DATA, PARITY = 0, 1

_BLOCK = struct.Struct("<II")
_DATA = struct.Struct("<BBqqI")
_PARITY = struct.Struct("<BBqIB")
_APPLIED = struct.Struct("<Bqq?")
_ENTRY = struct.Struct("<qqIII")
_MARK = struct.Struct("<qqq")
_WORKER = struct.Struct("<qqI")
_COUNT = struct.Struct("<I")


class BadDisk(ShardUnavailable):
    """What a disk holds is nothing that this program wrote."""


def sealed(value: bytes) -> bytes:
    """The value and its crc."""
    return value + zlib.crc32(value).to_bytes(4, "little")


def unsealed(value: bytes) -> bytes:
    """Errors: BadDisk if a bit of it is not what it was."""
    if len(value) < 4 or zlib.crc32(value[:-4]).to_bytes(4, "little") != value[-4:]:
        raise BadDisk(f"{len(value)} bytes fail their crc")
    return value[:-4]


def block_field(block: Block) -> bytes:
    """A block's field in the hashes of the shard."""
    return _BLOCK.pack(*block)


def read_field(value: bytes) -> Block:
    """The block that a field names. Errors: BadDisk."""
    try:
        return Block(*_BLOCK.unpack(value))
    except struct.error as exc:
        raise BadDisk(f"{value!r} names no block") from exc


class Touched:
    """A set of rows, for `records.unpack`, from a bitmap."""

    def __init__(self, bits: bytes) -> None:
        self.bits = bits

    def __contains__(self, row: object) -> bool:
        if not isinstance(row, int) or row >= 8 * len(self.bits):
            return False
        return bool(self.bits[row >> 3] >> (row & 7) & 1)

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(_unpacked(self.bits)).tolist())

    def __len__(self) -> int:
        return int.from_bytes(self.bits, "little").bit_count()


def bits_of(rows: Rows | None, count: int) -> bytes:
    """A bitmap of `count` rows with these set, the first in the lowest bit."""
    return bytes((count + 7) // 8) if rows is None else with_rows(bits_of(None, count), rows)


def with_rows(bits: bytes, rows: Rows) -> bytes:
    """The bitmap with these rows set too."""
    found = _unpacked(bits)
    found[rows] = 1
    return np.packbits(found, bitorder="little").tobytes()


def _unpacked(bits: bytes) -> Bytes:
    return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")


# --- metas


def data_meta(meta: BlockMeta, touched: bytes, count: int) -> bytes:
    """A data block's meta without its sessions, and which of its `count` rows are touched."""
    head = _DATA.pack(FORMAT, DATA, meta.epoch, meta.version, count)
    if not meta.pending and not meta.lost:
        return sealed(head + touched)
    more = RowSet.of(meta.pending).packed(count) + RowSet.of(meta.lost).packed(count)
    return sealed(head + touched + more)


def parity_meta(meta: StripeMeta, touched: bytes, count: int) -> bytes:
    """A parity block's meta without its sessions, and which of its `count` rows are touched."""
    head = _PARITY.pack(FORMAT, PARITY, meta.term, count, len(meta.vector))
    vector = [
        _APPLIED.pack(member, applied.epoch, applied.version, applied.joined)
        for member, applied in meta.vector.items()
    ]
    return sealed(head + b"".join(vector) + touched)


def read_meta(value: bytes) -> tuple[BlockMeta | StripeMeta, bytes]:
    """A meta without its sessions, and the bitmap of touched rows. Errors: BadDisk."""
    value = unsealed(value)
    if value[:1] != bytes([FORMAT]):
        raise BadDisk(f"format {value[:1]!r} of a meta is not {FORMAT}")
    try:
        return (_read_data if value[1:2] == bytes([DATA]) else _read_parity)(value)
    except (struct.error, ValueError) as exc:
        raise BadDisk(f"a meta of {len(value)} bytes cannot be read: {exc}") from exc


def _read_data(value: bytes) -> tuple[BlockMeta, bytes]:
    _, _, epoch, version, count = _DATA.unpack_from(value)
    size = (count + 7) // 8
    parts = [value[at : at + size] for at in range(_DATA.size, len(value), size)]
    touched, *more = parts
    _whole_bits(touched, count)
    meta = BlockMeta(epoch, version)
    if more:
        pending, lost = (RowSet(int.from_bytes(part, "little")) for part in more)
        meta = BlockMeta(epoch, version, NO_SESSIONS, pending, lost)
    return meta, touched


def _read_parity(value: bytes) -> tuple[StripeMeta, bytes]:
    _, _, term, count, members = _PARITY.unpack_from(value)
    end = _PARITY.size + members * _APPLIED.size
    vector = {
        member: Applied(epoch, version, joined)
        for member, epoch, version, joined in _APPLIED.iter_unpack(value[_PARITY.size : end])
    }
    return StripeMeta(term, vector), _whole_bits(value[end:], count)


def _whole_bits(bits: bytes, count: int) -> bytes:
    if len(bits) != (count + 7) // 8:
        raise BadDisk(f"{len(bits)} bytes are no bitmap of {count} rows")
    return bits


# --- sessions


def sessions(found: Sessions) -> bytes:
    """The sessions of one data block."""
    return sealed(_sessions(found))


def _sessions(found: Sessions) -> bytes:
    parts = [_COUNT.pack(len(found.workers))]
    for worker, (floor, steps) in found.workers.items():
        parts.append(_WORKER.pack(worker, floor, len(steps)))
        parts.append(struct.pack(f"<{len(steps)}q", *sorted(steps)))
    return b"".join(parts)


def vector_sessions(meta: StripeMeta) -> bytes:
    """The sessions of all members of a parity block."""
    parts = (bytes([m]) + _sessions(a.sessions) for m, a in meta.vector.items())
    return sealed(b"".join(parts))


def _read_sessions(value: bytes, at: int) -> tuple[Sessions, int]:
    (count,) = _COUNT.unpack_from(value, at)
    at += _COUNT.size
    workers: dict[int, tuple[int, frozenset[int]]] = {}
    for _ in range(count):
        worker, floor, size = _WORKER.unpack_from(value, at)
        at += _WORKER.size
        steps = np.frombuffer(value, "<i8", size, at)
        workers[worker] = floor, frozenset(steps.tolist())
        at += 8 * size
    return Sessions(workers), at


def read_sessions(value: bytes) -> Sessions:
    """Errors: BadDisk."""
    value = unsealed(value)
    try:
        return _read_sessions(value, 0)[0]
    except (struct.error, ValueError) as exc:
        raise BadDisk(f"sessions of {len(value)} bytes cannot be read: {exc}") from exc


def read_vector_sessions(value: bytes) -> dict[int, Sessions]:
    """By member. Errors: BadDisk."""
    found, at = {}, 0
    value = unsealed(value)
    try:
        while at < len(value):
            found[value[at]], at = _read_sessions(value, at + 1)
    except (struct.error, ValueError) as exc:
        raise BadDisk(f"sessions of {len(value)} bytes cannot be read: {exc}") from exc
    return found


# --- log entries


def entry(found: Entry) -> bytes:
    """One entry of an outbox or an undo ring, with a crc over all of it."""
    width = found.delta.shape[1]
    return sealed(
        b"".join(
            (
                _ENTRY.pack(found.start, found.to, len(found.rows), width, len(found.marks)),
                found.rows.astype("<u4").tobytes(),
                *(_MARK.pack(mark.worker, mark.step, mark.floor) for mark in found.marks),
                found.delta.tobytes(),
            )
        )
    )


def read_entry(value: bytes) -> Entry | None:
    """None: it is not what was written."""
    try:
        body = unsealed(value)
    except BadDisk:
        return None
    if len(body) < _ENTRY.size:
        return None
    start, to, count, width, marks = _ENTRY.unpack_from(body)
    at = _ENTRY.size
    rows: Rows = np.frombuffer(body, "<u4", count, at).astype(np.intp)
    at += 4 * count
    end = at + marks * _MARK.size
    found = tuple(Mark(*fields) for fields in _MARK.iter_unpack(body[at:end]))
    delta: Bytes = np.frombuffer(body, np.uint8, count * width, end).reshape(count, width)
    return Entry(start, to, rows, delta, found)


def read_log(values: Iterable[bytes]) -> tuple[Entry, ...] | None:
    """A whole log; None if one of its entries is bad."""
    found = [read_entry(value) for value in values]
    good = tuple(one for one in found if one is not None)
    return good if len(good) == len(found) else None


def with_sessions(applied: Applied, found: Sessions) -> Applied:
    """What a meta says of a member, completed."""
    return Applied(applied.epoch, applied.version, applied.joined, found)

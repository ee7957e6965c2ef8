"""Rows as a disk keeps them: their bytes and a crc, so that a wrong row is known to be wrong.

DESIGN 9, facts ecrm C2 and F10: touched but absent, or a wrong crc, is an erasure; only a row that
nobody ever touched may be taken for its initial value (all zero, for rows are kept XORed with it).
The crc is that of zlib: crc32c is not in Python's library. It is no part of what is coded.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from itertools import chain

import numpy as np

from proa.store.gf256 import Bytes
from proa.store.protocol.log import Rows

CRC_BYTES = 4
# The crc of any bytes followed by their own crc.
_RESIDUE = 0x2144DF1C


def pack(data: Bytes) -> list[bytes]:
    """One record per row of uint8 [rows, width]: width bytes, then crc32, little-endian."""
    raw, width = data.tobytes(), data.shape[1]
    rows = (raw[at : at + width] for at in range(0, len(raw), width))
    return [row + zlib.crc32(row).to_bytes(CRC_BYTES, "little") for row in rows]


def unpack(
    rows: Rows, records: Sequence[bytes | None], touched: Collection[int], width: int
) -> tuple[Bytes, frozenset[int]]:
    """uint8 [rows, width], and the indices of `rows` that are erasures (zero in the array).

    records: per row what the disk has, None for nothing; touched: rows that were ever written.
    """
    whole = unpack_whole(records, width)
    if whole is not None:
        return whole, frozenset()  # nearly always
    size = width + CRC_BYTES
    found: list[bytes] = []
    missing: list[int] = []
    for index, record in enumerate(records):
        if record is not None and len(record) == size and zlib.crc32(record) == _RESIDUE:
            found.append(record)
            continue
        if record is not None or int(rows[index]) in touched:
            missing.append(index)
        found.append(bytes(size))
    return _data(found, size), frozenset(missing)


def unpack_whole(records: Sequence[bytes | None], width: int) -> Bytes | None:
    """uint8 [records, width]; None unless all of them are there and good."""
    size = width + CRC_BYTES
    whole = [record for record in records if record is not None]
    if (
        len(whole) == len(records) > 0
        and set(map(len, whole)) == {size}
        and set(map(zlib.crc32, whole)) == {_RESIDUE}
    ):
        return _data(whole, size)
    return None


def unpack_blocks(
    asked: Sequence[tuple[Sequence[bytes | None], int]],
) -> list[Bytes | None]:
    """`unpack_whole` of many blocks, each with its width. Blocks of one width are done
    as one: None for all of them unless all are whole."""
    found: list[Bytes | None] = [None] * len(asked)
    widths: dict[int, list[int]] = {}
    for number, (_, width) in enumerate(asked):
        widths.setdefault(width, []).append(number)
    for width, numbers in widths.items():
        whole = unpack_whole([*chain.from_iterable(asked[n][0] for n in numbers)], width)
        if whole is None:
            continue
        begin = 0
        for number in numbers:
            end = begin + len(asked[number][0])
            found[number], begin = whole[begin:end], end
    return found


def _data(records: Sequence[bytes], size: int) -> Bytes:
    """uint8 [records, size - 4], without the crcs."""
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), size)
    return np.ascontiguousarray(table[:, :-CRC_BYTES])

"""Our packing of commands is the library's, byte for byte; a whole read is checked all the same."""

from __future__ import annotations

import numpy as np
import pytest
from redis.asyncio.connection import Connection

from proa.store.disk.commands import Command, get_rows, packed, set_rows
from proa.store.protocol.layout import Block
from proa.store.protocol.records import pack, unpack, unpack_blocks

ROWS = np.array([0, 7, 300], np.intp)


@pytest.mark.parametrize(
    "commands",
    [
        [("MULTI",)],
        [("GET", b"stamp"), ("LRANGE", "o:1:2", 0, -1)],
        [("SET", "\u00fc", b""), ("SET", b"\r\n$4\r\n", 12345678901234567890)],
        [get_rows(Block(3, 1), np.arange(40)), get_rows(Block(3, 1), np.arange(41))],
        [set_rows(Block(3, 1), np.arange(20), [b"%20d" % row for row in range(20)])],
        [set_rows(Block(3, 1), np.arange(20), [b"%d" % row for row in range(20)])],
        [
            ("RPUSH", b"k", *(b"%d\r\n" % n for n in range(30))),
            ("HMGET", "k", *map(str, ROWS)),
            ("HSET", "k", *(b"abcd" if n % 2 else 7 for n in range(12))),
            ("HMGET", b"k", *(b"ab" if n % 2 else b"%%b" for n in range(11))),
        ],
        [get_rows(Block(3, 1), ROWS), set_rows(Block(3, 1), ROWS, [b"a", b"\x00" * 264, b"c"])],
    ],
)
def test_the_same_bytes_as_the_library_s(commands: list[Command]):
    library = Connection()
    assert packed(commands) == b"".join(b"".join(library.pack_command(*one)) for one in commands)


def test_whole_records_are_read_and_a_flipped_bit_is_found():
    data = np.random.default_rng(0).integers(0, 256, (3, 20), np.uint8)
    records = pack(data)
    found, missing = unpack(ROWS, records, frozenset({0, 7, 300}), 20)
    assert (found == data).all()
    assert missing == frozenset()
    for index, record in enumerate(records):
        rotten = bytes([record[0] ^ 1]) + record[1:]
        tampered = [*records[:index], rotten, *records[index + 1 :]]
        found, missing = unpack(ROWS, tampered, frozenset(), 20)
        assert missing == frozenset({index})
        assert (found[index] == 0).all()
    assert unpack(ROWS, [*records[:2], records[2][:-1]], frozenset(), 20)[1] == frozenset({2})


def test_blocks_of_one_width_are_read_as_one():
    draw = np.random.default_rng(1)
    narrow, wide, empty = (
        draw.integers(0, 256, size, np.uint8) for size in ((3, 4), (2, 9), (0, 4))
    )
    asked = [(pack(narrow), 4), (pack(wide), 9), (pack(empty), 4), (pack(narrow[:1]), 4)]
    found = unpack_blocks(asked)
    for data, one in zip(found, (narrow, wide, empty, narrow[:1]), strict=True):
        assert data is not None
        assert np.array_equal(data, one)
    asked[3] = ([None], 4)
    assert [data is None for data in unpack_blocks(asked)] == [True, False, True, True]
    assert unpack_blocks([]) == []

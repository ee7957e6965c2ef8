"""What a shard's server holds, byte by byte: it comes out as it went in, and junk is found."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fakes.store_twin import plain
from proa.errors import InvalidRequest
from proa.store.disk import codec
from proa.store.disk.shard_disk import check
from proa.store.protocol.layout import Block
from proa.store.protocol.log import NO_SESSIONS, Entry, Mark, Sessions
from proa.store.protocol.storage import Applied, BlockMeta, StripeMeta

NUMBERS = st.integers(-(2**63), 2**63 - 1)
ROWS = st.integers(1, 300)
SESSIONS = st.builds(
    Sessions,
    st.dictionaries(NUMBERS, st.tuples(NUMBERS, st.frozensets(NUMBERS, max_size=4)), max_size=4),
)


@given(st.data(), NUMBERS, NUMBERS, ROWS)
def test_a_data_block_s_meta(data: st.DataObject, epoch: int, version: int, count: int):
    some = st.frozensets(st.integers(0, count - 1), max_size=8)
    pending, lost, touched = (data.draw(some) for _ in range(3))
    meta = BlockMeta(epoch, version, NO_SESSIONS, pending, lost)
    rows = np.array(sorted(touched), np.intp)
    bits = codec.bits_of(rows[::2], count)
    bits = codec.with_rows(bits, rows[1::2])
    found, again = codec.read_meta(codec.data_meta(meta, bits, count))
    assert found == meta
    assert again == bits
    assert len(codec.Touched(again)) == len(touched)
    assert set(codec.Touched(again)) == touched
    assert all((row in codec.Touched(again)) == (row in touched) for row in range(count + 9))


@given(
    NUMBERS,
    st.dictionaries(
        st.integers(0, 255), st.builds(Applied, NUMBERS, NUMBERS, st.booleans(), SESSIONS),
        max_size=4,
    ),
    ROWS,
)  # fmt: skip
def test_a_parity_block_s_meta_and_sessions(term: int, vector: dict[int, Applied], count: int):
    meta = StripeMeta(term, vector)
    bits = codec.bits_of(np.arange(0, count, 3), count)
    found, again = codec.read_meta(codec.parity_meta(meta, bits, count))
    assert isinstance(found, StripeMeta)
    sessions = codec.read_vector_sessions(codec.vector_sessions(meta))
    whole = {m: codec.with_sessions(one, sessions[m]) for m, one in found.vector.items()}
    assert StripeMeta(found.term, whole) == meta
    assert again == bits
    assert set(codec.Touched(again)) == set(range(0, count, 3))
    with pytest.raises(codec.BadDisk, match="no bitmap"):
        codec.read_meta(codec.parity_meta(meta, bits + b"\0", count))


@given(SESSIONS)
def test_sessions(found: Sessions):
    assert codec.read_sessions(codec.sessions(found)) == found


@given(
    NUMBERS, NUMBERS, st.sets(st.integers(0, 2**32 - 1), max_size=6), st.integers(0, 9),
    st.lists(st.builds(Mark, NUMBERS, NUMBERS, NUMBERS), max_size=3), st.data(),
)  # fmt: skip
def test_a_log_entry_and_one_flipped_bit(start, to, rows, width, marks, data):
    raw = data.draw(st.binary(min_size=len(rows) * width, max_size=len(rows) * width))
    delta = np.frombuffer(raw, np.uint8).reshape(len(rows), width)
    entry = Entry(start, to, np.array(sorted(rows), np.intp), delta, tuple(marks))
    value = codec.entry(entry)
    assert plain(codec.read_entry(value)) == plain(entry)
    assert plain(codec.read_log([value, value])) == plain((entry, entry))
    bad = bytearray(value)
    bit = data.draw(st.integers(0, 8 * len(bad) - 1))
    bad[bit // 8] ^= 1 << bit % 8
    assert codec.read_entry(bytes(bad)) is None
    assert codec.read_log([value, bytes(bad)]) is None


@given(st.binary(max_size=80))
@example(b"\x01")  # ends before its kind
def test_random_bytes_are_found_bad_and_nothing_worse(raw: bytes):
    assert codec.read_entry(raw) is None
    for read in (codec.read_meta, codec.read_sessions, codec.read_vector_sessions):
        with pytest.raises(codec.BadDisk, match="crc"):
            read(raw)
        with contextlib.suppress(codec.BadDisk):
            read(codec.sealed(raw))


def test_another_format_is_refused():
    value = codec.data_meta(BlockMeta(1, 1), codec.bits_of(None, 8), 8)
    with pytest.raises(codec.BadDisk, match="is not 1"):
        codec.read_meta(codec.sealed(b"\x09" + value[1:-4]))
    with pytest.raises(codec.BadDisk):
        codec.read_meta(value[:5])


def test_fields_name_blocks():
    block = Block(4_000_000_000, 257)
    assert codec.read_field(codec.block_field(block)) == block
    with pytest.raises(codec.BadDisk, match="names no block"):
        codec.read_field(b"123")


@pytest.mark.parametrize(
    ("server", "policy", "named"),
    [
        ({"redis_version": "6.2.14"}, "noeviction", "redis 6.2.14 is older than 7.0"),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.9"}, "noeviction", "valkey 7.2.9"),
        ({"redis_version": "7.0.15"}, "volatile-lru", "volatile-lru"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_used_is_refused(server, policy: str, named: str):
    with pytest.raises(InvalidRequest, match=named):
        check({"run_id": "x", **server}, {"maxmemory_policy": policy})
    for good in (
        {"redis_version": "7.0.15"},
        {"redis_version": "7.2.4", "valkey_version": "8.0.1"},
    ):
        assert check({"run_id": "x", **good}, {"maxmemory_policy": "noeviction"}) == "x"

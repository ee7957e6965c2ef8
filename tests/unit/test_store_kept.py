"""Parity rows that need not be read again: within a limit, and never in two places."""

from __future__ import annotations

from proa.store.disk.kept import RECORD_BYTES, Kept
from proa.store.protocol.layout import Block

A, B, C = Block(0, 2), Block(1, 2), Block(2, 2)


def size(*lengths: int) -> int:
    return sum(lengths) + RECORD_BYTES * len(lengths)


def test_what_is_taken_is_kept_no_longer():
    kept = Kept()
    kept.put(A, {1: b"one", 2: b"two"})
    assert kept.take(A, {2, 3}) == {2: b"two"}
    assert kept.take(A, {1, 2}) == {1: b"one"}
    assert kept.take(B, {1}) == {}
    assert kept.bytes == 0


def test_the_bytes_are_counted_once():
    kept = Kept()
    kept.put(A, {1: b"one"})
    kept.put(A, {1: b"other", 2: b""})
    assert kept.bytes == size(5, 0)
    kept.forget(A)
    kept.forget(B)
    assert kept.bytes == 0


def test_blocks_that_were_not_used_for_long_go_first():
    kept = Kept(size(10, 10, 10))
    for block in (A, B, C):
        kept.put(block, {0: bytes(10)})
    kept.put(A, kept.take(A, {0}))
    kept.put(B, {1: bytes(10)})
    assert kept.take(C, {0}) == {}
    assert kept.bytes == size(10, 10, 10)
    assert kept.take(A, {0}) == {0: bytes(10)}
    kept.put(C, {row: bytes(10) for row in range(9)})  # more than all of it
    assert kept.bytes == 0

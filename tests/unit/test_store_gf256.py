"""GF(2^8) against values written down elsewhere, against slow arithmetic, and by its laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fakes.store_books import russian_peasant
from proa.errors import TooManyErasures
from proa.store import gf256

number = some.integers(0, 255)


def test_powers_of_two_are_those_of_raid_6():
    assert gf256.EXP[:16] == [1, 2, 4, 8, 16, 32, 64, 128, 29, 58, 116, 232, 205, 135, 19, 38]
    assert len(set(gf256.EXP)) == 255
    assert gf256.inverse(2) == 0x8E


def test_the_table_is_the_slow_product():
    slow = [[russian_peasant(a, b) for b in range(256)] for a in range(256)]
    assert gf256.TABLE.tolist() == slow
    assert not gf256.TABLE.flags.writeable


def test_p_and_q_of_known_data():
    data = np.array([[1, 0x80, 0xFF], [2, 3, 4], [0, 0x55, 0xAA]], np.uint8)
    found = [
        np.bitwise_xor.reduce([gf256.scaled(gf256.coefficient(j, i), data[i]) for i in range(3)])
        for j in range(2)
    ]
    # By hand: P = a ^ b ^ c; Q = a ^ 2b ^ 4c with 4 * 0x55 = 0x49 and 4 * 0xAA = 0x92.
    assert found[0].tolist() == [0x03, 0xD6, 0x51]
    assert found[1].tolist() == [0x05, 0x80 ^ 0x06 ^ 0x49, 0xFF ^ 0x08 ^ 0x92]


@given(number, number, number)
def test_the_laws_of_a_field(a: int, b: int, c: int):
    times = gf256.multiply
    assert times(a, b) == times(b, a)
    assert times(a, times(b, c)) == times(times(a, b), c)
    assert times(a, b ^ c) == times(a, b) ^ times(a, c)
    assert times(a, 1) == a
    assert a == 0 or times(a, gf256.inverse(a)) == 1


def test_zero_has_no_inverse():
    with pytest.raises(ZeroDivisionError):
        gf256.inverse(0)


@given(some.binary(min_size=8, max_size=8), some.binary(min_size=8, max_size=8))
def test_scaling_is_linear_and_undoes_itself(left: bytes, right: bytes):
    a, b = np.frombuffer(left, np.uint8), np.frombuffer(right, np.uint8)
    for factor in (1, 2, 29, 255):
        both = gf256.scaled(factor, a ^ b)
        assert np.array_equal(both, gf256.scaled(factor, a) ^ gf256.scaled(factor, b))
        assert np.array_equal(both ^ gf256.scaled(factor, b), gf256.scaled(factor, a))
        assert np.array_equal(gf256.scaled(gf256.inverse(factor), gf256.scaled(factor, a)), a)


@pytest.mark.parametrize("k", range(2, 9))
def test_every_pair_of_lost_blocks_is_found_again(k: int):
    """Whatever the bytes mean as floats: NaN payloads, -0.0, infinities, denormals (E2 T2)."""
    odd = [np.nan, -0.0, np.inf, -np.inf, 1e-45, 1.0, np.float32(3e38), -1e-40]
    data = np.array([np.roll(odd, i) for i in range(k)], np.float32).view(np.uint8)
    parity = [
        np.bitwise_xor.reduce([gf256.scaled(gf256.coefficient(j, i), data[i]) for i in range(k)])
        for j in range(2)
    ]
    for lost in itertools.combinations(range(k), 2):
        sums = [
            np.bitwise_xor.reduce(
                [gf256.scaled(gf256.coefficient(j, i), data[i]) for i in range(k) if i not in lost]
                + [parity[j]]
            )
            for j in range(2)
        ]
        matrix = [[gf256.coefficient(j, i) for i in lost] for j in range(2)]
        found = gf256.solve(matrix, sums)
        assert all(found[n].tobytes() == data[i].tobytes() for n, i in enumerate(lost))


def test_equations_that_say_the_same_are_refused():
    sums = [np.zeros(4, np.uint8)] * 2
    with pytest.raises(TooManyErasures, match="2 parity rows"):
        gf256.solve([[1, 2], [2, 4]], sums)

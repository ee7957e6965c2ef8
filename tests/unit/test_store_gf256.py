"""GF(2^8) against values written down elsewhere, against slow arithmetic, and by its laws."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fakes.store_books import russian_peasant
from proa.errors import TooManyErasures
from proa.store import gf256
from proa.store.isal import Isal, load

number = some.integers(0, 255)


def test_powers_of_two_are_those_of_raid_6():
    assert gf256.EXP[:16] == [1, 2, 4, 8, 16, 32, 64, 128, 29, 58, 116, 232, 205, 135, 19, 38]
    assert len(set(gf256.EXP)) == 255
    assert gf256.inverse(2) == 0x8E


def test_the_table_is_the_slow_product():
    slow = [[russian_peasant(a, b) for b in range(256)] for a in range(256)]
    assert gf256.TABLE.tolist() == slow
    assert not gf256.TABLE.flags.writeable


@pytest.fixture
def isal() -> Isal:
    found = load()
    if found is None:
        pytest.skip("this machine has no ISA-L (Debian: libisal2)")
    return found


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 33, 63, 100, 4096, 70_001])
def test_isal_gives_the_bytes_of_the_table(isal: Isal, size: int):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    for factor in (0, 1, 2, 29, 128, 255):
        wanted = gf256.by_table(factor, data)
        assert isal.scaled(factor, data).tobytes() == wanted.tobytes()
        assert gf256.scaled(factor, data).tobytes() == wanted.tobytes()
    assert gf256.checked(load) is not None


def test_isal_takes_what_is_not_contiguous(isal: Isal):
    data = np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)[::2, 1::3]
    assert np.array_equal(isal.scaled(77, data), gf256.by_table(77, data))


def test_where_isal_is_not_the_table_does_it(monkeypatch: pytest.MonkeyPatch):
    def not_here(name: str) -> ctypes.CDLL:
        raise OSError(name)

    assert load(not_here) is None
    assert load(lambda _name: ctypes.CDLL(None)) is None  # a library without these functions
    monkeypatch.setattr(gf256, "load", lambda: None)
    data = np.random.default_rng(1).integers(0, 256, 10_000, dtype=np.uint8)
    assert np.array_equal(gf256.scaled(29, data), gf256.TABLE[29][data])


def test_a_library_with_other_products_is_not_used(caplog: pytest.LogCaptureFixture):
    class Wrong:
        def scaled(self, factor: int, data: gf256.Bytes) -> gf256.Bytes:
            return gf256.by_table(factor, data) ^ np.uint8(factor == 200)

    assert gf256.checked(Wrong) is None  # type: ignore[arg-type]
    assert "wrong" in caplog.text


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

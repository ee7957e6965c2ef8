"""GF(2^8): the arithmetic of P + Q parity over raw bytes, by tables (facts ecrm C3, C5).

The field is GF(2)[x] modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11D) with generator 2, as in RAID-6.
Addition is XOR, so whatever is added twice is gone: deltas, their undoing and decoding are one
operation. Parity row 0 (P) has the coefficients 1, 1, 1, ...; row 1 (Q) has 1, 2, 4, 8, ...

Products of many bytes come from ISA-L where this machine has it, else from a table of 64 KiB. Which
of both is settled, checked and said in the log when the first of them is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from proa.errors import TooManyErasures
from proa.store.isal import Isal, load

log = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]

POLYNOMIAL = 0x11D
PARITY_ROWS_MAX = 2
MEMBERS_MAX = 255
ISAL_BYTES_MIN = 4096  # below, the call through ctypes costs more than the table


def _powers() -> list[int]:
    found, value = [], 1
    for _ in range(255):
        found.append(value)
        value = value << 1 ^ (POLYNOMIAL if value & 0x80 else 0)
    return found


EXP = _powers()
LOG = {value: exponent for exponent, value in enumerate(EXP)}


def multiply(a: int, b: int) -> int:
    """a times b, both 0 to 255."""
    return 0 if a == 0 or b == 0 else EXP[(LOG[a] + LOG[b]) % 255]


def inverse(a: int) -> int:
    """The number whose product with a is 1. Errors: ZeroDivisionError for 0."""
    if a == 0:
        raise ZeroDivisionError("0 has no inverse in GF(256)")
    return EXP[-LOG[a] % 255]


def _table() -> Bytes:
    exp, log_of = np.array(EXP * 2, np.uint8), np.array([LOG[a] for a in range(1, 256)])
    table = np.zeros((256, 256), np.uint8)
    table[1:, 1:] = exp[log_of[:, None] + log_of]
    table.flags.writeable = False
    return table


TABLE = _table()


def coefficient(row: int, member: int) -> int:
    """What data block `member` of a stripe is multiplied by in parity row `row` (0 P, 1 Q)."""
    assert 0 <= row < PARITY_ROWS_MAX
    assert 0 <= member < MEMBERS_MAX
    return EXP[row * member % 255]


def scaled(factor: int, data: Bytes) -> Bytes:
    """factor times every byte of `data`, of any shape. Factor 1 gives `data` itself."""
    if factor == 1:
        return data
    if data.size >= ISAL_BYTES_MIN and (isal := checked(load)) is not None:
        return isal.scaled(factor, data)
    return by_table(factor, data)


def by_table(factor: int, data: Bytes) -> Bytes:
    """The same from the table."""
    found: Bytes = TABLE[factor][data]
    return found


@cache
def checked(find: Callable[[], Isal | None]) -> Isal | None:
    """ISA-L if there is one and its products are ours, all 65,536 of them. Asked for once."""
    found = find()
    every = np.arange(256, dtype=np.uint8)
    if found is None:
        log.info("GF(256): by table, ISA-L is not here")
    elif any((found.scaled(a, every) != TABLE[a]).any() for a in range(256)):
        log.warning("GF(256): by table, the products of ISA-L are wrong")
        return None
    else:
        log.info("GF(256): by ISA-L")
    return found


def solve(matrix: Sequence[Sequence[int]], sums: Sequence[Bytes]) -> list[Bytes]:
    """The unknowns y with sum_c matrix[row][c] y_c = sums[row], for a square matrix.

    sums: one uint8 array per equation, all of one shape; returns one such array per unknown.
    Errors: TooManyErasures if the equations do not determine the unknowns.
    """
    size = len(sums)
    rows = [list(row) for row in matrix]
    values = list(sums)
    for column in range(size):
        pivot = next((i for i in range(column, size) if rows[i][column]), None)
        if pivot is None:
            raise TooManyErasures(f"{size} parity rows do not determine {size} lost blocks")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        values[column], values[pivot] = values[pivot], values[column]
        factor = inverse(rows[column][column])
        rows[column] = [multiply(factor, a) for a in rows[column]]
        values[column] = scaled(factor, values[column])
        for other in range(size):
            factor = rows[other][column]
            if other != column and factor:
                rows[other] = [
                    a ^ multiply(factor, b) for a, b in zip(rows[other], rows[column], strict=True)
                ]
                values[other] = values[other] ^ scaled(factor, values[column])
    return values

"""GF(2^8): the arithmetic of P + Q parity over raw bytes, by tables (facts ecrm C3, C5).

The field is GF(2)[x] modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11D) with generator 2, as in RAID-6.
Addition is XOR, so whatever is added twice is gone: deltas, their undoing and decoding are one
operation. Parity row 0 (P) has the coefficients 1, 1, 1, ...; row 1 (Q) has 1, 2, 4, 8, ...
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from proa.errors import TooManyErasures

Bytes = NDArray[np.uint8]

POLYNOMIAL = 0x11D
PARITY_ROWS_MAX = 2
MEMBERS_MAX = 255


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
    table = np.array([[multiply(a, b) for b in range(256)] for a in range(256)], np.uint8)
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
    return data if factor == 1 else TABLE[factor][data]


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

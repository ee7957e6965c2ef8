"""Constants of fp32 products made of bf16 products (facts: abft G), shared by CPU and GPU.

An fp32 value is p0 + 2^-8 p1 + 2^-16 p2, three bf16. The product of parts i and j belongs to band
i + j, which weighs 2^-8(i + j). bf16x9 takes all nine, bf16x6 the bands 0 to 2, bf16x3 0 and 1.
"""

from __future__ import annotations

import math

PARTS = 3
STEP = 8  # bits between two parts
# Rows of A and columns of B are scaled by powers of two until their largest value has this
# exponent. 2^31 squared and summed over any K stays inside fp32.
TOP = 30
# A scaled value below 2^BOTTOM could lose bits of a product to underflow: its tiles fall back.
BOTTOM = -60
SHIFT_MAX = 126  # 2^-126 is the smallest normal fp32: shifts can be undone
PROMOTE = 64  # inner terms summed on the matrix unit before they go to an fp32 register, in RN
TILE = 128  # a fall-back concerns one tile of TILE x TILE outputs
CHUNK = 16  # products that a matrix unit aligns and truncates at once (the model of it)

# (part of A, part of B), smallest band first.
ORDER: dict[int, tuple[tuple[int, int], ...]] = {
    3: ((0, 1), (1, 0), (0, 0)),
    6: ((0, 2), (1, 1), (2, 0), (0, 1), (1, 0), (0, 0)),
    9: ((2, 2), (1, 2), (2, 1), (0, 2), (1, 1), (2, 0), (0, 1), (1, 0), (0, 0)),
}


def parts(products: int) -> int:
    """How many parts of each operand `products` products need."""
    return 2 if products == 3 else PARTS


def noise(inner: int, products: int) -> float:
    """Relative rounding of one checked sum, for threshold T2 (facts: abft D.2, L).

    A promotion rounds to nearest: a walk of inner / PROMOTE steps. Within PROMOTE terms the matrix
    unit truncates products x PROMOTE / CHUNK times, each relative to a sum that small. Bands left
    out weigh 2^-16 (x3) or 2^-24 (x6) of |a| |w|, at random.
    """
    walk = 2.0 * math.sqrt(inner / PROMOTE) + 6.0
    cut = products * PROMOTE / CHUNK / 2.0
    left_out = {3: 2.0**-15, 6: 2.0**-23, 9: 0.0}[products]
    return 2.0**-24 * (walk + cut) + left_out

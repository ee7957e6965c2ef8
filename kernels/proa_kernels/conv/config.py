"""How the check values of a convolution are computed on a CPU, by a simple cost rule.

They are a convolution with the checksums as kernel, two channels per tile. A library computes as
many channels as a vector has lanes at least, so few channels are dear. Where that costs more the
sums over the channels come first, one product per tap of the kernel, and are then shifted and
added. Where input channels are few, neighbouring places fill the lanes. Constants from measurement
(AVX-512, torch 2.13: docs/abft.md); a wrong guess costs time.
"""

from __future__ import annotations

LANES = 16
BLOCKS = ((2, 4), (2, 2), (1, 2))
SHIFT = 30  # cost of writing, shifting and adding one value, in multiplications
SLOW = 2  # several taps: a matrix product of few rows runs at half of a convolution's rate


def sums_first(channels: int, checks: int, taps: int, places_in: int, places_out: int) -> bool:
    """Whether to sum over `channels` (of one group) before the `taps` of the kernel are added.
    `checks`: check values of one group at one place."""
    thin = -(-checks // LANES) * LANES * taps * channels * places_out
    each = SLOW * (channels + SHIFT) if taps > 1 else channels
    return checks * taps * each * places_in <= thin


def block(channels: int, checks: int, places: tuple[int, int]) -> tuple[int, int]:
    """How many neighbouring places, in rows and in columns, share one multiplication: each has
    channels of its own, for lanes that were idle. Worth it where there are few input `channels`."""
    if channels >= LANES:
        return 1, 1
    for rows, columns in BLOCKS:
        if rows * columns * checks <= LANES and not (places[0] % rows or places[1] % columns):
            return rows, columns
    return 1, 1

"""The long sweeps behind the numbers in docs/abft.md.

`pytest tests/kernels/test_campaign.py -m long --log-cli-level=INFO` shows the counts.
"""

from __future__ import annotations

import logging
import math

import pytest
import torch

from kernels.counts import flip_counts, share
from kernels.matrices import KINDS, REGULAR, operands, product
from proa_kernels.checksum import take
from proa_kernels.linear.injection import flip

log = logging.getLogger("campaign")
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(4096, 384, 64), (4096, 512, 512), (2048, 512, 2048), (256, 512, 8192), (1, 512, 1024)]
SMOOTH = ("n01", "relu", "outlier", "t3")


@pytest.mark.parametrize("kind", KINDS)
def test_clean_checks(kind: str) -> None:
    """Altogether more than 1e6 row checks, none of which alarms."""
    checks = cleared = 0
    for dtype in DTYPES:
        worst = 0.0
        for seed in range(2):
            for sizes in SHAPES:
                _, verdict = product(*operands(kind, sizes, dtype, seed=seed))
                assert verdict.alarms == 0
                checks, cleared = checks + verdict.checks, cleared + verdict.cleared
                worst = max(worst, verdict.ratio)
        log.info("clean %s %s: worst ratio %.3f", kind, dtype, worst)
        assert worst < 0.6 or kind not in REGULAR
    log.info("clean %s: %d checks, 0 alarms, %d cleared", kind, checks, cleared)
    assert checks > 150_000


@pytest.mark.parametrize("inner", [256, 1024, 4096])
@pytest.mark.parametrize("kind", REGULAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flips_of_accumulator_bits(dtype: torch.dtype, kind: str, inner: int) -> None:
    counts = flip_counts(kind, (256, 128, inner), dtype, rounds=4, seed=11)
    injected, detected = (sum(getattr(c, n) for c in counts) for n in ("injected", "detected"))
    visible, seen = (sum(getattr(c, n) for c in counts) for n in ("visible", "visible_detected"))
    large, found = (sum(getattr(c, n) for c in counts) for n in ("large", "large_detected"))
    log.info(
        "flips %s %s K=%d: %d injected, %.2f%% found; visible %.2f%% of %d; large %.2f%% of %d",
        *(dtype, kind, inner, injected, 100 * share(detected, injected)),
        *(100 * share(seen, visible), visible, 100 * share(found, large), large),
    )
    per_bit = " ".join(f"{share(c.detected, c.injected):.2f}" for c in counts)
    log.info("per bit %s %s K=%d: %s", dtype, kind, inner, per_bit)
    assert sum(c.falsely_corrected for c in counts) == 0
    assert share(counts[30].detected, counts[30].injected) == 1.0
    if kind in SMOOTH:
        assert found == large
    if dtype == torch.bfloat16 and kind != "cancelling":
        assert seen >= 0.97 * visible


@pytest.mark.parametrize("kind", SMOOTH)
def test_pairs(kind: str) -> None:
    """Swaps of two elements and +d, -d pairs, d of the size of the output's sigma."""
    rows, missed = 2048, {"swap": 0, "pair": 0}
    generator = torch.Generator().manual_seed(5)
    for seed in range(8):
        x, weight = operands(kind, (rows, 128, 512), torch.bfloat16, seed=seed)
        clean, _ = product(x, weight)
        at = torch.arange(rows)
        left = torch.randint(128, (rows,), generator=generator)
        right = (left + 1 + torch.randint(127, (rows,), generator=generator)) % 128
        d = torch.randn(rows, generator=generator) * clean.std()

        def swap(
            acc: torch.Tensor, _: int, a: object = (at, left), b: object = (at, right)
        ) -> None:
            acc[a], acc[b] = acc[b].clone(), acc[a].clone()  # type: ignore[index]

        def pair(
            acc: torch.Tensor,
            _: int,
            a: object = (at, left),
            b: object = (at, right),
            by: object = d,
        ) -> None:
            acc[a] += by  # type: ignore[index]
            acc[b] -= by  # type: ignore[index]

        for name, fault in (("swap", swap), ("pair", pair)):
            _, verdict = product(x, weight, tamper=fault)
            missed[name] += rows - verdict.alarms
    log.info("pairs %s: missed %s of %d each", kind, missed, 8 * rows)
    assert max(missed.values()) <= 0.001 * 8 * rows


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_columns(dtype: torch.dtype, stays: bool) -> None:
    """Single flips of random bits. One that stays is located by the two checksums alone."""
    generator = torch.Generator().manual_seed(9)
    x, weight = operands("n01", (4, 256, 1024), dtype)
    found = right = 0
    for _ in range(4000):
        row, column, bit = (int(torch.randint(n, (), generator=generator)) for n in (4, 256, 32))

        def fault(
            acc: torch.Tensor, attempt: int, at: object = (row, column), b: int = bit
        ) -> None:
            if attempt == 0 or stays:
                flip(acc, at, 1 << b)  # type: ignore[arg-type]

        verdict = product(x, weight, tamper=fault)[1]
        found += verdict.alarms
        right += verdict.alarms and (verdict.row, verdict.column) == (row, column)
    log.info("columns %s stays=%s: %d of %d located", dtype, stays, right, found)
    assert right >= (0.96 if stays else 0.99) * found


@pytest.mark.parametrize("dtype", DTYPES)
def test_flips_of_weight_bits(dtype: torch.dtype) -> None:
    """After the checksum was taken. A flip counts as large where it changes some output of the
    batch by more than 1e-3 of the outputs' sigma."""
    generator = torch.Generator().manual_seed(13)
    bits = 32 if dtype == torch.float32 else 16
    x, weight = operands("n01", (64, 128, 512), dtype)
    check, clean = take(weight), product(x, weight)[0]
    per_bit = [[0, 0, 0, 0] for _ in range(bits)]  # injected, found, large, large and found
    for at in range(bits * 60):
        bit, count = at % bits, per_bit[at % bits]
        place = tuple(int(torch.randint(n, (), generator=generator)) for n in weight.shape)
        flip(weight, place, 1 << bit)
        acc, verdict = product(x, weight, check)
        flip(weight, place, 1 << bit)
        gap = float((acc - clean).abs().max())
        large, hit = not gap <= 1e-3 * float(clean.std()), verdict.alarms > 0
        for index, one in enumerate((True, hit, large, large and hit)):
            count[index] += one
    rates = " ".join(f"{share(c[1], c[0]):.2f}" for c in per_bit)
    log.info("weight %s: per bit %s", dtype, rates)
    log.info("weight %s: large %d, found %d", dtype, *(sum(c[i] for c in per_bit) for i in (2, 3)))
    assert all(c[2] == c[3] for c in per_bit)
    assert math.isclose(share(*per_bit[bits - 2][1::-1]), 1.0)

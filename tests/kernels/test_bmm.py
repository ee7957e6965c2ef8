"""Products of two computed matrices: clean ones never alarm, faults are found and repaired."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from kernels.matrices import DEGENERATE, KINDS, REGULAR, flip_each_row
from kernels.sheets import product, sheets
from proa_kernels import KernelError, Plan, Verdict, protect
from proa_kernels.bmm import checked_bmm, dup_bmm
from proa_kernels.injection import flip, injecting

log = logging.getLogger("bmm")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
SMOOTH = ("n01", "relu", "outlier", "t3")
SHAPES = [(4, (30, 64, 64)), (3, (50, 200, 3)), (2, (40, 128, 500)), (5, (1, 300, 32))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", REGULAR)
def test_no_alarm_and_headroom(kind: str, dtype: torch.dtype) -> None:
    for count, sizes in SHAPES:
        for rows_first in (True, False):
            x, y = sheets(kind, count, sizes, dtype, rows_first=rows_first)
            acc, verdict = product(x, y)
            assert (verdict.alarms, verdict.cleared, verdict.row, verdict.column) == (0, 0, -1, -1)
            assert verdict.checks == count * sizes[0] * math.ceil(sizes[1] / 128)
            assert 0.0 < verdict.ratio < 0.8
            exact = x.double() @ y.double()
            size = x.double().norm() * y.double().norm() / math.sqrt(sizes[2])
            assert float((acc - exact).norm()) <= 2e-6 * float(size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data_may_be_suspicious_but_never_alarms(kind: str, dtype: torch.dtype) -> None:
    for sizes in ((100, 130, 64), (40, 256, 1024)):
        _, verdict = product(*sheets(kind, 2, sizes, dtype))
        assert (verdict.alarms, verdict.repaired) == (0, 0)


def flips(kind: str, dtype: torch.dtype, inner: int, rounds: int) -> list[list[int]]:
    """Per bit of the accumulator: injected, found, visible, visible and found, large, large and
    found. One flip in each row; with `correct` a row that was found equals the clean one."""
    counts = [[0] * 6 for _ in range(32)]
    generator = torch.Generator().manual_seed(7)
    for seed in range(rounds):
        x, y = sheets(kind, 2, (64, 128, inner), dtype, seed=seed)
        clean = product(x, y)[0].flatten(0, 1)
        rows = torch.arange(len(clean))
        for bit, count in enumerate(counts):
            at = torch.randint(128, (len(clean),), generator=generator)

            def tamper(acc: torch.Tensor, attempt: int, at: Any = at, bit: int = bit) -> None:
                if attempt == 0:
                    flip_each_row(acc, at, 1 << bit)

            fixed = product(x, y, correct=True, tamper=tamper)[0].flatten(0, 1)
            flipped = clean.clone()
            tamper(flipped, 0)
            found = (fixed == clean).all(1)
            assert bool(
                (found | (fixed.view(torch.int32) == flipped.view(torch.int32)).all(1)).all()
            )
            before, after = clean[rows, at], flipped[rows, at]
            visible = before.to(dtype) != after.to(dtype)
            large = ~((after - before).abs() <= 1e-3 * clean.std())
            for place, one in enumerate(
                (found | True, found, visible, visible & found, large, large & found)
            ):
                count[place] += int(one.sum())
    return counts


@pytest.mark.parametrize("kind", ["n01", "t3"])
def test_flips_per_bit(kind: str) -> None:
    counts = flips(kind, torch.bfloat16, 64, rounds=1)
    totals = [sum(count[place] for count in counts) for place in range(6)]
    assert counts[30][0] == counts[30][1]
    assert totals[3] >= 0.97 * totals[2]
    assert totals[4] == totals[5]
    assert sum(count[1] for count in counts[:4]) == 0, "a limit below the rounding"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [(0, 0), (37, 127), (38, 128), (113, 299)])
def test_a_single_error_is_located_and_repaired(dtype: torch.dtype, place: tuple[int, int]) -> None:
    """Row b M + m."""
    x, y = sheets("n01", 3, (38, 300, 64), dtype)
    clean, _ = product(x, y)

    def add(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc[place] += 1.0

    wrong, seen = product(x, y, tamper=add)
    assert (seen.alarms, seen.repaired, seen.status) == (1, 0, "failed")
    assert (seen.row, seen.column) == place
    assert not torch.equal(wrong, clean)
    fixed, repaired = product(x, y, tamper=add, correct=True)
    assert (repaired.alarms, repaired.repaired, repaired.status) == (1, 1, "corrected")
    assert torch.equal(fixed, clean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_alarm(value: float) -> None:
    x, y = sheets("n01", 3, (8, 140, 32))
    clean, _ = product(x, y)

    def put(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc[10, 130] = value

    fixed, verdict = product(x, y, tamper=put, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.row, verdict.column) == (1, 1, 10, 130)
    assert verdict.ratio == math.inf
    assert torch.equal(fixed, clean)
    y = y.clone()
    y[1, 3, 7] = value  # an operand: every row of its sheet, and nothing helps
    _, verdict = product(x, y, correct=True)
    assert (verdict.alarms, verdict.repaired) == (8, 0)


def test_swaps_and_opposite_pairs_are_seen() -> None:
    x, y = sheets("n01", 4, (50, 128, 64))
    rows = torch.arange(200)
    generator = torch.Generator().manual_seed(1)
    left = torch.randint(128, (200,), generator=generator)
    right = (left + 1 + torch.randint(127, (200,), generator=generator)) % 128

    def swap(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left], acc[rows, right] = acc[rows, right].clone(), acc[rows, left].clone()

    def pair(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left] += 0.5
        acc[rows, right] -= 0.5

    for fault in (swap, pair):
        assert product(x, y, tamper=fault)[1].alarms >= 199


def test_an_operand_that_the_product_alone_read_wrong() -> None:
    """The right operand as the multiplier saw it, not as it lies: all rows of its sheet."""
    x, y = sheets("n01", 2, (6, 64, 32))
    misread = y.clone()
    misread[1, 3, 5] += 4.0
    wrong = (x @ misread).flatten(0, 1)

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc.copy_(wrong)

    fixed, verdict = product(x, y, tamper=tamper, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.column) == (6, 6, 5)
    assert torch.equal(fixed, x @ y)


def test_what_is_not_covered() -> None:
    """Operands that were wrong before, the addend, and the output afterwards."""
    x, y = sheets("n01", 2, (4, 16, 32))
    addend = torch.ones(16)
    clean = checked_bmm(x, y, addend)[0]
    for broken in (x, y.mT, addend):
        flip(broken, (0,) * broken.dim(), 1 << 29)
        wrong, verdict = checked_bmm(x, y, addend)
        flip(broken, (0,) * broken.dim(), 1 << 29)
        assert not torch.equal(wrong, clean)
        assert verdict[1] == 0


def test_a_fault_that_stays_is_not_called_repaired() -> None:
    x, y = sheets("n01", 2, (4, 16, 32))

    def put(acc: torch.Tensor, _attempt: int) -> None:
        acc[5, 3] = 1e4

    _, verdict = product(x, y, tamper=put, correct=True)
    assert (verdict.alarms, verdict.repaired, verdict.column) == (1, 0, 3)


CASES = [
    ((5, 7, 8), (5, 8, 9)),
    ((7, 8), (8, 9)),
    ((2, 3, 7, 8), (3, 8, 9)),
    ((2, 1, 7, 8), (3, 8, 9)),
    ((4, 7, 8), (8, 9)),
    ((7, 8), (4, 8, 9)),
    ((8,), (4, 8, 9)),
    ((4, 7, 8), (8,)),
    ((0, 7, 8), (0, 8, 9)),
    ((2, 0, 8), (2, 8, 9)),
    ((2, 7, 0), (2, 0, 9)),
    ((2, 7, 8), (2, 8, 0)),
]


@pytest.mark.parametrize(("left", "right"), CASES)
def test_shapes_are_those_of_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*one, generator=generator) for one in (left, right))
    out, verdict = checked_bmm(x, y)
    expected = torch.matmul(x, y)
    torch.testing.assert_close(out, expected)
    assert verdict[0] == (
        expected.numel()
        and x.shape[-1]
        and expected.numel() // max(1, y.shape[-1] if y.dim() > 1 else 1)
    )
    assert verdict[1] == 0
    if y.dim() > 1:
        again, _ = checked_bmm(x, y.mT, transposed=True)
        assert torch.equal(again, out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_alpha_and_addend(dtype: torch.dtype) -> None:
    x, y = sheets("n01", 2, (6, 20, 300), dtype)
    addend = sheets("n01", 1, (2, 2, 20), dtype)[0][0, :1]
    expected = 2.0 * addend.double() + 0.5 * (x.double() @ y.double())
    for op in (checked_bmm, dup_bmm):
        out, _ = op(x, y, addend, alpha=0.5, beta=2.0)
        assert out.dtype == dtype
        assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[dtype]


def test_computed_twice() -> None:
    x, y = sheets("n01", 2, (6, 200, 32))

    def once(out: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            out[1, 2, 150] += 1e-6  # a sum would not see it

    out, found = dup_bmm(x, y, correct=True, tamper=once)
    verdict = Verdict.read(found)
    assert (verdict.alarms, verdict.repaired, verdict.row, verdict.column) == (1, 1, 8, 150)
    assert torch.equal(out, x @ y)


@pytest.mark.parametrize("name", ["checked_bmm", "dup_bmm"])
def test_torch_accepts_the_operator(name: str) -> None:
    x, y = sheets("n01", 3, (4, 130, 16))
    options = {"transposed": True, "alpha": 1.0, "beta": 1.0, "correct": True}
    op = getattr(torch.ops.proa, name).default
    assert "tamper" not in str(op._schema)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(op, (x, y.mT, torch.ones(130)), options, test_utils=tests)
    meta = [one.to("meta") for one in (x, y)]
    with pytest.raises(KernelError):
        op(meta[0], meta[1], None, **options)


class Scores(nn.Module):
    """Products in which nothing is constant, and one whose weight is on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = torch.bmm(x, x.mT)
        return (
            torch.baddbmm(x, scores, x, beta=0.5, alpha=2.0),
            self.left @ x,
            nn.functional.linear(x[0], x[1, :3]),
        )


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("scheme", ["row", "dup"])
def test_protected_with_a_dynamic_batch(scheme: str, decomposed: bool) -> None:
    program = torch.export.export(
        Scores().eval(), (torch.zeros(3, 6, 6),), dynamic_shapes=({0: Dim("batch", min=2)},)
    )
    program = program.run_decompositions() if decomposed else program
    names = [layer.layer for layer in protect(program, Plan())[1].layers]
    plan = Plan(mode="correct", layers=dict.fromkeys(names, scheme))
    protected, coverage = protect(program, plan)
    assert len(coverage.checked) == 4
    assert (coverage.share, coverage.shares) == (1.0, {"gemm": 1.0})
    x = torch.randn(7, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        *clean, found = protected.module(check_guards=False)(x)
        expected = program.module(check_guards=False)(x)
    torch.testing.assert_close(tuple(clean), expected)
    assert Verdict.read(found).status == "clean"
    calls = iter(range(100))

    def once(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0 and next(calls) == 1:
            acc.view(-1)[5] += 1.0

    with injecting(once), torch.inference_mode():
        *out, found = protected.module(check_guards=False)(x)
    verdict = Verdict.read(found)
    assert (verdict.status, verdict.layer, verdict.alarms) == ("corrected", 1, 1)
    assert all(torch.equal(one, two) for one, two in zip(out, clean, strict=True))


LONG = [(16, (256, 128, 64)), (16, (256, 256, 128)), (8, (128, 384, 16)), (4, (256, 64, 1024))]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_clean_checks(kind: str) -> None:
    """Over all kinds more than 1e6 row checks, none of which alarms."""
    checks = cleared = 0
    for dtype in DTYPES:
        worst = 0.0
        for seed in range(4):
            for count, sizes in LONG:
                _, verdict = product(*sheets(kind, count, sizes, dtype, seed=seed))
                assert verdict.alarms == 0
                checks, cleared = checks + verdict.checks, cleared + verdict.cleared
                worst = max(worst, verdict.ratio)
        log.info("clean %s %s: worst ratio %.3f", kind, dtype, worst)
        assert worst < 1.0 or kind not in REGULAR
    log.info("clean %s: %d checks, 0 alarms, %d cleared", kind, checks, cleared)
    assert checks > 130_000


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("inner", [64, 512])
@pytest.mark.parametrize("kind", REGULAR)
@pytest.mark.parametrize("dtype", DTYPES)
def test_flips_of_accumulator_bits(dtype: torch.dtype, kind: str, inner: int) -> None:
    counts = flips(kind, dtype, inner, rounds=4)
    totals = [sum(count[place] for count in counts) for place in range(6)]
    log.info(
        "flips %s %s K=%d: %d, found %.2f%%; visible %.2f%% of %d; large %.2f%% of %d",
        *(dtype, kind, inner, totals[0], 100 * totals[1] / totals[0]),
        *(100 * totals[3] / max(1, totals[2]), totals[2]),
        *(100 * totals[5] / max(1, totals[4]), totals[4]),
    )
    assert counts[30][0] == counts[30][1]
    if kind in SMOOTH:
        assert totals[4] == totals[5]
    if dtype == torch.bfloat16 and kind != "cancelling":
        assert totals[3] >= 0.97 * totals[2]

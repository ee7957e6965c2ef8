"""Checked attention: torch's value, no alarm on clean data, faults of each step found."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.matrices import KINDS, REGULAR, flip_each_row
from kernels.sheets import sheets
from proa_kernels import KernelError, Verdict
from proa_kernels.attention import checked_attention, dup_attention, reference

log = logging.getLogger("attention")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Norm of the difference to fp64 over that of the result: ours are rounded once, at the end.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(
    query: tuple[int, ...],
    keys: int,
    *,
    heads: int | None = None,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensors:
    """`query` `[..., H, M, E]`, and keys and values of as many heads, or of `heads`."""
    lead = query[:-2] if heads is None else (*query[:-3], heads)
    return (
        normal(*query, dtype=dtype, seed=1),
        normal(*lead, keys, query[-1], dtype=dtype, seed=2),
        normal(*lead, keys, width or query[-1], dtype=dtype, seed=3),
    )


def hidden_row(shape: tuple[int, ...]) -> torch.Tensor:
    """A bool mask, one of whose queries sees nothing."""
    mask = normal(*shape, seed=4) > 0.3
    mask[(0,) * (len(shape) - 1)] = False
    return mask


CASES: dict[str, Callable[[torch.dtype], tuple[Tensors, dict[str, Any]]]] = {
    "plain": lambda d: (inputs((2, 3, 37, 16), 150, dtype=d), {}),
    "causal": lambda d: (inputs((2, 3, 37, 16), 37, dtype=d), {"is_causal": True}),
    "causal, more queries": lambda d: (inputs((3, 9, 8), 5, dtype=d), {"is_causal": True}),
    "scale": lambda d: (inputs((2, 3, 7, 16), 9, dtype=d), {"scale": 0.7}),
    "padding": lambda d: (
        inputs((2, 3, 7, 16), 9, dtype=d),
        {"attn_mask": hidden_row((2, 1, 1, 9))},
    ),
    "bool mask": lambda d: (
        inputs((2, 3, 7, 16), 9, dtype=d),
        {"attn_mask": hidden_row((2, 1, 7, 9))},
    ),
    "additive mask": lambda d: (
        inputs((2, 3, 7, 16), 9, dtype=d),
        {"attn_mask": normal(7, 9, dtype=d, seed=5)},
    ),
    "grouped": lambda d: (
        inputs((2, 6, 7, 16), 9, heads=2, dtype=d),
        {"enable_gqa": True, "attn_mask": hidden_row((2, 6, 7, 9))},
    ),
    "wide values": lambda d: (inputs((4, 7, 16), 9, width=40, dtype=d), {}),
    "one query": lambda d: (inputs((2, 3, 1, 64), 300, dtype=d), {}),
}


def ours(
    tensors: Tensors, options: dict[str, Any], op: Any = checked_attention, **more: Any
) -> tuple[torch.Tensor, Verdict]:
    out, found = op(
        *tensors,
        options.get("attn_mask"),
        causal=options.get("is_causal", False),
        scale=options.get("scale"),
        **more,
    )
    return out, Verdict.read(found)


@pytest.mark.parametrize("blocks", [1 << 19, 200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_the_value_is_that_of_torch(
    case: str, dtype: torch.dtype, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in many."""
    monkeypatch.setattr(reference, "SCORES_MAX", blocks)
    tensors, options = CASES[case](dtype)
    out, verdict = ours(tensors, options)
    wide = [one.double() for one in tensors]
    mask = options.get("attn_mask")
    exact_mask = mask.double() if mask is not None and mask.dtype != torch.bool else mask
    exact = scaled_dot_product_attention(*wide, **{**options, "attn_mask": exact_mask})
    expected = scaled_dot_product_attention(*tensors, **options)
    assert (out.dtype, out.shape, out.stride()) == (dtype, expected.shape, expected.stride())
    assert float((out.double() - exact).norm() / exact.norm()) < TOLERANCE[dtype]
    (*lead, rows, _), keys, width = tensors[0].shape, tensors[1].shape[-2], tensors[2].shape[-1]
    each = 2 * math.ceil(keys / 128) + 1 + math.ceil(width / 128)
    assert (verdict.status, verdict.cleared) == ("clean", 0)
    assert verdict.checks == math.prod(lead) * rows * each
    assert 0.0 < verdict.ratio < 0.8


@pytest.mark.parametrize(
    ("query", "keys"), [((0, 2, 5, 8), 6), ((2, 2, 0, 8), 6), ((2, 2, 5, 8), 0)]
)
def test_nothing_to_attend(query: tuple[int, ...], keys: int) -> None:
    tensors = inputs(query, keys)
    out, verdict = ours(tensors, {})
    assert torch.equal(out, scaled_dot_product_attention(*tensors))
    assert verdict == Verdict(0, 0, 0, 0, 0.0, -1, -1, -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_alarm_whatever_the_data(kind: str, dtype: torch.dtype) -> None:
    """Scores from sharp (one key takes all) to flat."""
    q, k = sheets(kind, 2, (60, 140, 32), dtype)
    for scale in (1e-3, 0.2, 5.0):
        _, verdict = ours((q, k.mT, k.mT), {"scale": scale})
        assert (verdict.alarms, verdict.status) == (0, "clean")


class Step:
    """A fault in the first computation of one step: 0 scores, 1 softmax, 2 values."""

    def __init__(self, step: int, change: Callable[[torch.Tensor], None]) -> None:
        self._firsts, self._step, self._change = -1, step, change

    def __call__(self, acc: torch.Tensor, attempt: int) -> None:
        self._firsts += attempt == 0
        if attempt == 0 and self._firsts == self._step:
            self._change(acc)


def put(row: int, column: int, value: float) -> Callable[[torch.Tensor], None]:
    def change(acc: torch.Tensor) -> None:
        acc[row, column] = value

    return change


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("step", "value", "column"),
    [(0, 9.0, -1), (1, 0.5, -1), (1, 1e-6, -1), (2, 9.0, 11), (0, math.nan, -1), (2, math.inf, 11)],
)
def test_a_fault_of_each_step(dtype: torch.dtype, step: int, value: float, column: int) -> None:
    tensors = inputs((2, 3, 20, 16), 150, dtype=dtype)
    clean, _ = ours(tensors, {})
    wrong, seen = ours(tensors, {}, tamper=Step(step, put(47, 11, value)))
    assert seen.status == "failed"
    assert (seen.row, seen.column) == (47, column)
    assert value == 1e-6 or not torch.equal(wrong, clean)
    fixed, verdict = ours(tensors, {}, correct=True, tamper=Step(step, put(47, 11, value)))
    assert (verdict.status, verdict.alarms, verdict.repaired) == ("corrected", 1, 1)
    assert (verdict.row, verdict.column) == (47, column)
    assert torch.equal(fixed, clean)


def test_rows_are_those_of_the_call_in_later_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SCORES_MAX", 8 * 30)  # 8 queries of one head
    tensors = inputs((2, 3, 20, 16), 30)
    clean, _ = ours(tensors, {})
    for block, row in ((0, 5), (2, 16 + 3), (4, 20 + 8 + 1), (17, 100 + 16 + 2)):
        at = row % 20 % 8
        out, verdict = ours(tensors, {}, correct=True, tamper=Step(3 * block + 2, put(at, 7, 5.0)))
        assert (verdict.row, verdict.column, verdict.repaired) == (row, 7, 1)
        assert torch.equal(out, clean)


def test_a_wrong_exponential_is_seen_although_the_row_still_sums_to_one() -> None:
    """What row sums alone would pass."""

    def exponential(p: torch.Tensor) -> None:
        p[3, 5] *= 4.0
        p[3] /= p[3].sum()

    tensors = inputs((1, 2, 10, 16), 30)
    clean, _ = ours(tensors, {})
    fixed, verdict = ours(tensors, {}, correct=True, tamper=Step(1, exponential))
    assert (verdict.alarms, verdict.repaired, verdict.row) == (1, 1, 3)
    assert torch.equal(fixed, clean)


def test_a_softmax_that_is_wrong_each_time_is_seen_by_its_sum() -> None:
    """Twice the same bits: what is left is that a row sums to 1."""

    def always(p: torch.Tensor, _attempt: int) -> None:
        if bool((p >= 0.0).all()):  # neither the scores nor the result
            p[4, 2] += 0.25

    tensors = inputs((1, 2, 10, 16), 30)
    _, verdict = ours(tensors, {}, correct=True, tamper=always)
    assert (verdict.alarms, verdict.repaired, verdict.row) == (1, 0, 4)
    assert 1.0 < verdict.ratio < math.inf


@pytest.mark.parametrize("step", [0, 2])
def test_flips_that_change_the_stored_output(step: int) -> None:
    """Each bit of the accumulators of either product, bf16: one flip in each row."""
    found = visible = 0
    tensors = inputs((1, 2, 64, 32), 64, dtype=torch.bfloat16)
    clean, _ = ours(tensors, {})
    generator = torch.Generator().manual_seed(6)
    for bit in range(32):
        at = torch.randint(32, (128,), generator=generator)

        def change(acc: torch.Tensor, at: torch.Tensor = at, bit: int = bit) -> None:
            flip_each_row(acc, at, 1 << bit)

        wrong = ours(tensors, {}, tamper=Step(step, change))[0].view(128, -1) != clean.view(128, -1)
        fixed = ours(tensors, {}, correct=True, tamper=Step(step, change))[0]
        left = fixed.view(128, -1) != clean.view(128, -1)
        visible += int(wrong.any(1).sum())
        found += int((wrong.any(1) & ~left.any(1)).sum())
    assert visible > 1000
    assert found >= 0.97 * visible


def test_what_is_not_covered() -> None:
    """Operands that are wrong before."""
    tensors = inputs((1, 2, 10, 16), 30)
    clean, _ = ours(tensors, {})
    for one in tensors:
        one[0, 1, 4, 3] += 2.0
        wrong, verdict = ours(tensors, {})
        assert verdict.status == "clean"
        assert not torch.equal(wrong, clean)


@pytest.mark.parametrize("case", CASES)
def test_computed_twice_it_is_torch_bit_for_bit(case: str) -> None:
    tensors, options = CASES[case](torch.bfloat16)
    expected = scaled_dot_product_attention(*tensors, **options)

    def once(out: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            out[..., 3, :][..., 5] += 1.0

    single = case != "one query"
    out, verdict = ours(
        tensors, options, dup_attention, correct=True, tamper=once if single else None
    )
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    assert verdict.status == ("corrected" if single else "clean")


@pytest.mark.parametrize("name", ["checked_attention", "dup_attention"])
def test_torch_accepts_the_operator(name: str) -> None:
    op = getattr(torch.ops.proa, name).default
    assert "tamper" not in str(op._schema)
    q, k, v = inputs((2, 5, 3, 8), 6)
    q = q.transpose(1, 2)  # not as it lies
    k, v = (one[:, :1].expand(2, 3, 6, 8) for one in (k, v))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    options = {"causal": False, "scale": None, "correct": True}
    torch.library.opcheck(op, (q, k, v, hidden_row((5, 6))), options, test_utils=tests)


def test_the_fake_kernel_refuses_what_does_not_fit() -> None:
    q, k, v = (one.to("meta") for one in inputs((2, 3, 5, 8), 6))
    options = {"causal": False, "scale": None, "correct": True}
    for broken in ((q.bfloat16(), k, v), (q[..., :4], k, v), (q, k[..., :5, :], v)):
        with pytest.raises(KernelError):
            torch.ops.proa.checked_attention(*broken, None, **options)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_clean_checks(kind: str) -> None:
    checks = cleared = 0
    for dtype in DTYPES:
        worst = 0.0
        for seed in range(3):
            for count, sizes in ((12, (128, 128, 64)), (4, (256, 512, 64)), (16, (64, 200, 16))):
                q, k = sheets(kind, count, sizes, dtype, seed=seed)
                _, verdict = ours((q, k.mT, k.mT.flip(1)), {"scale": 0.02 * 10.0**seed})
                assert verdict.alarms == 0
                checks, cleared = checks + verdict.checks, cleared + verdict.cleared
                worst = max(worst, verdict.ratio)
        log.info("clean %s %s: worst ratio %.3f", kind, dtype, worst)
        assert worst < 1.0 or kind not in REGULAR
    log.info("clean %s: %d checks, 0 alarms, %d cleared", kind, checks, cleared)
    assert checks > 100_000

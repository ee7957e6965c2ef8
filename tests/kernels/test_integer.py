"""Products of int8 matrices: exact, so no single error is missed and no clean product alarms."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram

from proa_kernels import KernelError, Plan, Verdict, protect
from proa_kernels.injection import flip, injecting
from proa_kernels.integer import checked_int_mm, checked_product, take

log = logging.getLogger("integer")
OP = torch.ops.proa.checked_int_mm


def random(*shape: int, seed: int = 0, low: int = -128, high: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, dtype=torch.int8, generator=generator)


def product(
    x: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor | None = None, **options: Any
) -> tuple[torch.Tensor, Verdict]:
    acc, found = checked_product(x, weight, columns, **{"correct": False, **options})
    return acc, Verdict.read(found)


def wrapped(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product modulo 2^32, in int64."""
    exact = x.long() @ weight.long()
    return ((exact + 2**31) % 2**32 - 2**31).int()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 300), st.integers(0, 300)),
    ends=st.sampled_from([(-128, 128), (-128, -127), (127, 128), (0, 1), (-1, 2)]),
    fresh=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_shape_is_exact_and_clean(
    sizes: tuple[int, int, int], ends: tuple[int, int], fresh: bool, seed: int
) -> None:
    rows, inner, outputs = sizes
    x = random(rows, inner, seed=seed, low=ends[0], high=ends[1])
    weight = random(inner, outputs, seed=seed + 1, low=ends[0], high=ends[1])
    acc, verdict = product(x, weight, None if fresh else take(weight), correct=True)
    assert torch.equal(acc, wrapped(x, weight))
    assert verdict == Verdict(rows * -(-outputs // 128), 0, 0, 0, 0.0, -1, -1, -1)


def test_sums_that_wrap() -> None:
    """2^14 each: from 2^17 inner products on, int32 overflows, and so do its sums."""
    x, weight = (torch.full(shape, -128, dtype=torch.int8) for shape in ((3, 2**18), (2**18, 140)))
    weight[::8] = 127
    acc, verdict = product(x, weight, take(weight))
    assert torch.equal(acc, wrapped(x, weight))
    assert int(acc[0, 0]) != int((x[:1].long() @ weight[:, :1].long()).item())
    assert (verdict.checks, verdict.alarms) == (6, 0)


@pytest.mark.parametrize("offline", [False, True])
def test_every_flip_of_every_bit_is_found_located_and_repaired(offline: bool) -> None:
    x, weight = random(4, 70), random(70, 300, seed=1)
    columns = take(weight) if offline else None
    clean, _ = product(x, weight, columns)
    generator = torch.Generator().manual_seed(2)
    for bit in range(32):
        for _ in range(8):
            row, column = (int(torch.randint(n, (), generator=generator)) for n in (4, 300))

            def fault(
                acc: torch.Tensor, attempt: int, at: Any = (row, column), b: int = bit
            ) -> None:
                if attempt == 0:
                    flip(acc, at, 1 << b)

            wrong, seen = product(x, weight, columns, tamper=fault)
            assert (seen.alarms, seen.status) == (1, "failed")
            assert (seen.row, seen.column, seen.ratio) == (row, column, math.inf)
            assert not torch.equal(wrong, clean)
            fixed, verdict = product(x, weight, columns, tamper=fault, correct=True)
            assert (verdict.status, verdict.repaired) == ("corrected", 1)
            assert torch.equal(fixed, clean)


def test_an_error_that_stays_is_located_by_the_two_sums() -> None:
    x, weight = random(5, 70), random(70, 300, seed=1)
    for column in (0, 100, 127, 128, 299):

        def always(acc: torch.Tensor, _attempt: int, at: int = column) -> None:
            acc[2, at] += 12345

        _, verdict = product(x, weight, tamper=always, correct=True)
        assert (verdict.alarms, verdict.repaired) == (1, 0)
        assert (verdict.row, verdict.column) == (2, column)


def test_pairs_and_swaps() -> None:
    """The second sum misses a pair only where d (i - j) is 0 modulo 2^32."""
    x, weight = random(128, 70), random(70, 128, seed=1)
    rows = torch.arange(128)
    left, right = rows, (rows + 37) % 128

    def pair(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left] += 3
        acc[rows, right] -= 3

    def swap(acc: torch.Tensor, _attempt: int) -> None:
        acc[rows, left], acc[rows, right] = acc[rows, right].clone(), acc[rows, left].clone()

    clean = product(x, weight)[0]
    changed = int((clean[rows, left] != clean[rows, right]).sum())
    assert product(x, weight, tamper=pair)[1].alarms == 128
    assert product(x, weight, tamper=swap)[1].alarms == changed


def test_every_flip_of_a_stored_weight_that_matters_is_found() -> None:
    """Of all bits of all weights: an input of zero alone hides one."""
    x, weight = random(3, 12), random(12, 20, seed=1)
    x[:, 5] = 0
    columns, clean = take(weight), product(x, weight)[0]
    for place in range(weight.numel() * 8):
        at, bit = divmod(place, 8)
        word = weight.view(-1)[at : at + 1]
        word ^= torch.tensor([1 << bit], dtype=torch.uint8).view(torch.int8)
        acc, verdict = product(x, weight, columns, correct=True)
        word ^= torch.tensor([1 << bit], dtype=torch.uint8).view(torch.int8)
        wrong = int((acc != clean).any(1).sum())
        assert (verdict.alarms, verdict.repaired) == (wrong, 0)
        assert (wrong == 0) == (at // 20 == 5)
        assert verdict.column == (at % 20 if wrong else -1)


def test_without_a_stored_checksum_a_wrong_weight_is_not_seen() -> None:
    x, weight = random(3, 12), random(12, 20, seed=1)
    weight[4, 4] ^= 64
    assert product(x, weight)[1].status == "clean"


def test_a_checksum_that_changed_alarms() -> None:
    x, weight = random(3, 12, low=1), random(12, 20, seed=1)
    columns = take(weight)
    columns[2, 1] += 1
    assert product(x, weight, columns, correct=True)[1].alarms == 3


def test_torch_accepts_the_operator() -> None:
    assert "tamper" not in str(OP.default._schema)
    x, weight = random(3, 40), random(40, 130, seed=1)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for columns in (take(weight), None):
        torch.library.opcheck(OP.default, (x, weight, columns), {"correct": True}, test_utils=tests)
    columns = take(weight)
    for one, two, three in (
        (x.int(), weight, columns),
        (x[:, :9], weight, columns),
        (x[0], weight, columns),
        (x, weight, columns[:, :5]),
    ):
        with pytest.raises(KernelError):
            OP(*(each.to("meta") for each in (one, two, three)), correct=True)


class Quantised(nn.Module):
    """Weight and inputs in int8; weight alone in int8; and two computed operands."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.scale = nn.Parameter(torch.rand(9, 1, generator=generator) / 99)
        self.register_buffer("weight", random(9, 16))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        step = x.abs().amax(1, keepdim=True) / 127
        whole = (x / step).round().to(torch.int8)
        dynamic = torch._int_mm(whole, self.weight.t()).float() * step * self.scale.T
        weight_only = nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)
        return dynamic, weight_only, torch._int_mm(whole, whole.t())


def quantised(*, decomposed: bool = False) -> ExportedProgram:
    program = torch.export.export(
        Quantised().eval(), (torch.ones(3, 16),), dynamic_shapes=({0: Dim("batch", min=2)},)
    )
    return program.run_decompositions() if decomposed else program


def run(program: ExportedProgram, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        return program.module(check_guards=False)(x)


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_protected_quantised_program(decomposed: bool) -> None:
    program = quantised(decomposed=decomposed)
    protected, coverage = protect(program, Plan(mode="correct"), batch=4)
    layers = {one.layer: (one.covers, one.scheme, one.weight, one.flops) for one in coverage.layers}
    assert layers == {
        "weight": ("integer", "exact", (9, 16), 2 * 4 * 16 * 9),
        "weight#2": ("gemm", "row", (9, 16), 2 * 4 * 16 * 9),
        "_int_mm_1": ("integer", "exact", None, 2 * 4 * 16 * 4),
    }
    assert coverage.shares == {"gemm": 1.0, "integer": 1.0}
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    *clean, found = run(protected, x)
    torch.testing.assert_close(tuple(clean), run(program, x))
    assert Verdict.read(found).status == "clean"

    def once(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0 and acc.dtype == torch.int32 and acc.shape[1] == 9:
            flip(acc, (3, 7), 1)

    with injecting(once):
        *out, found = run(protected, x)
    verdict = Verdict.read(found)
    assert (verdict.status, verdict.layer, verdict.row, verdict.column) == ("corrected", 0, 3, 7)
    assert all(torch.equal(one, two) for one, two in zip(out, clean, strict=True))


@pytest.mark.parametrize("name", ["weight", "scale"])
def test_stored_integers_and_scales_are_covered_behind_their_arithmetic(name: str) -> None:
    """The checksum is of the weight that they make."""
    protected, coverage = protect(quantised(), Plan(mode="correct"))
    module = protected.module(check_guards=False)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    stored = dict(module.named_parameters()) | dict(module.named_buffers())
    changed = stored[name].detach()
    changed.view(torch.int8).view(-1)[3] ^= 64  # an exponent's bit in the scale
    with torch.inference_mode():
        verdicts = Verdict.read_layers(module(x)[-1])
    failed = [
        layer.layer for layer, one in zip(coverage.checked, verdicts, strict=True) if one.failed
    ]
    assert failed == (["weight", "weight#2"] if name == "weight" else ["weight#2"])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_clean_and_single_errors() -> None:
    """100 % of single errors, of any size; none of the clean checks."""
    checks = found = 0
    generator = torch.Generator().manual_seed(3)
    for seed, (rows, inner, outputs) in enumerate([(4096, 64, 384), (2048, 512, 500)] * 12):
        x, weight = random(rows, inner, seed=2 * seed), random(inner, outputs, seed=2 * seed + 1)
        columns = take(weight)
        _, verdict = product(x, weight, columns)
        assert (verdict.alarms, verdict.cleared) == (0, 0)
        checks += verdict.checks
        at = torch.randint(outputs, (rows,), generator=generator)
        masks = torch.randint(1, 2**32, (rows,), generator=generator)
        masks = torch.where(masks >= 2**31, masks - 2**32, masks).int()

        def fault(acc: torch.Tensor, _attempt: int, at: Any = at, masks: Any = masks) -> None:
            acc[torch.arange(len(acc)), at] ^= masks

        _, verdict = product(x, weight, columns, tamper=fault)
        assert verdict.alarms == rows
        found += verdict.alarms
    log.info("int8: %d clean checks, 0 alarms; %d of %d errors found", checks, found, found)
    assert checks > 200_000


def test_the_operator_gives_what_the_definition_gives() -> None:
    x, weight = random(3, 40), random(40, 130, seed=1)
    out, verdict = checked_int_mm(x, weight, take(weight))
    assert torch.equal(out, torch._int_mm(x, weight))
    assert verdict.tolist() == [6, 0, 0, 0, 0, -1, -1, -1]

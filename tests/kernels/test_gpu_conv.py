"""The GPU's checked convolution, in Triton's CPU interpreter: compared with the CPU's operator."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from kernels.interpreted import interpreting
from proa_kernels import KernelError, Verdict
from proa_kernels.conv.checksum import take
from proa_kernels.conv.ops import checked_conv2d as reference

with interpreting():
    from proa_kernels.conv import gpu

# Against the CPU's result of the same dtype, relative to its largest value: K rounds at most.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1.5e-3}


@dataclass(frozen=True)
class Case:
    """`x` and `kernel` sizes as torch has them; `padding` before and after, per dimension."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    channels_last: bool = False

    @property
    def options(self) -> dict[str, object]:
        return {
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
        }

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(len(self.x) + self.groups)
        x, weight, bias = (
            torch.randn(sizes, generator=generator).to(dtype)
            for sizes in (self.x, self.weight, self.weight[:1])
        )
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
            weight = weight.to(memory_format=torch.channels_last)
        return x, weight, bias


CASES = [
    Case((2, 4, 5, 6), (6, 4, 3, 3), padding=(1, 1, 1, 1)),
    Case((2, 16, 5, 6), (6, 16, 3, 3), padding=(1, 1, 1, 1), channels_last=True),
    Case((1, 3, 9, 8), (5, 3, 3, 2), (2, 1), (1, 0, 0, 2), (2, 3)),  # nothing symmetric
    Case((1, 6, 4, 5), (140, 3, 1, 1), groups=2),  # two groups, the second tile with 6 channels
    Case((2, 6, 4, 5), (9, 2, 3, 3), padding=(1, 1, 1, 1), groups=3, channels_last=True),
    Case((2, 16, 3, 4), (130, 16, 1, 1), channels_last=True),  # a linear layer
    Case((1, 8, 5, 5), (4, 8, 1, 1), (2, 2), channels_last=True),
    Case((2, 3, 12), (4, 3, 5), (2,), (2, 1), (1,)),  # one dimension
]


def run(
    case: Case, dtype: torch.dtype, fault: list[int] | None = None, **options: object
) -> tuple[torch.Tensor, Verdict]:
    x, weight, bias = case.tensors(dtype)
    check = take(weight, case.groups)
    flips = None if fault is None else torch.tensor(fault, dtype=torch.int32)
    with interpreting():
        out, found = gpu.checked_conv2d(
            x, weight, bias, check.columns, check.scales, fault=flips, **case.options, **options
        )  # type: ignore[arg-type]
    return out, Verdict.read(found)


@pytest.mark.parametrize("scheme", ["tile", "fused"])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_cpus_operator(case: Case, scheme: str) -> None:
    dtype = torch.float16 if case.channels_last else torch.float32
    out, verdict = run(case, dtype, scheme=scheme)
    x, weight, bias = case.tensors(dtype)
    check = take(weight, case.groups)
    want, found = reference(x, weight, bias, check.columns, check.scales, **case.options)  # type: ignore[arg-type]
    assert out.shape == want.shape
    assert out.is_contiguous(memory_format=torch.channels_last) or not case.channels_last
    gap = (out.double() - want.double()).abs().max() / want.double().abs().max()
    assert float(gap) <= TOLERANCE[dtype]
    assert verdict.alarms == Verdict.read(found).alarms == 0
    assert verdict.checks == Verdict.read(found).checks
    assert 0.0 < verdict.ratio < 0.6


@pytest.mark.parametrize("scheme", ["tile", "fused"])
def test_a_flipped_accumulator_is_found_placed_and_repaired(scheme: str) -> None:
    case = Case((2, 4, 5, 6), (6, 4, 3, 3), (1, 2), (1, 1, 1, 1))
    clean, _ = run(case, torch.float32, scheme=scheme)
    row, column = 1 * 15 + 2 * 3 + 1, 4  # image 1, place (2, 1)
    fault = [1, row, column, 0, 1 << 30, 0]
    wrong, verdict = run(case, torch.float32, fault, scheme=scheme)
    assert (verdict.alarms, verdict.row, verdict.column) == (1, row, column)
    assert (wrong != clean).nonzero().tolist() == [[1, 4, 2, 1]]
    fixed, verdict = run(case, torch.float32, fault, scheme=scheme, correct=True)
    assert (verdict.alarms, verdict.repaired) == (1, 1)
    assert torch.equal(fixed, clean)


def test_columns_count_on_from_group_to_group() -> None:
    """The fault hits every group at its own row and column; the first of equal ratios is told."""
    case = Case((1, 6, 4, 5), (10, 3, 3, 3), groups=2)
    _, verdict = run(case, torch.float32, [1, 3, 2, 0, 1 << 30, 0], scheme="tile")
    assert verdict.alarms == 2
    assert (verdict.row, verdict.column) in [(3, 2), (3, 7)]


def test_a_weight_changed_after_its_checksum_is_found() -> None:
    case = CASES[1]
    x, weight, bias = case.tensors(torch.float32)
    check = take(weight, 1)
    options = dict(case.options)
    for changed in (False, True):
        if changed:
            weight[3, 2, 1, 1] += 2.0
        with interpreting():
            _, found = gpu.checked_conv2d(
                x, weight, bias, check.columns, check.scales, scheme="tile", **options
            )  # type: ignore[arg-type]
        assert (Verdict.read(found).alarms > 30) == changed
    assert Verdict.read(found).column == 3


def test_what_is_kept_of_a_weight_goes_with_it_and_follows_its_changes() -> None:
    x, weight, bias = CASES[0].tensors(torch.float32)
    for _ in range(2):
        check = take(weight, 1)
        with interpreting():
            out, found = gpu.checked_conv2d(
                x, weight, bias, check.columns, check.scales, **CASES[0].options
            )  # type: ignore[arg-type]
        want = torch.conv2d(x, weight, bias, padding=1)
        assert torch.allclose(out, want, atol=1e-5)
        assert Verdict.read(found).alarms == 0
        weight.mul_(2.0)
    kept = len(gpu._WEIGHTS), len(gpu._COLUMNS)
    del weight, check
    assert (len(gpu._WEIGHTS), len(gpu._COLUMNS)) < kept


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = CASES[0].tensors(torch.float32)
    check = take(weight, 1)
    with pytest.raises(KernelError, match="does not fit"):
        gpu.checked_conv2d(
            x[:, :, :2], weight, bias, check.columns, check.scales, stride=[1, 1],
            padding=[0] * 4, dilation=[1, 1], groups=1,
        )  # fmt: skip
    with pytest.raises(KernelError, match="scheme"):
        run(CASES[0], torch.float32, scheme="rows")


@pytest.mark.parametrize("sizes", [((0, 4, 5, 6), (6, 4, 3, 3)), ((2, 4, 5, 6), (0, 4, 3, 3))])
def test_nothing_to_multiply(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    out, verdict = run(Case(*sizes), torch.float32, scheme="tile")
    assert out.shape == (sizes[0][0], sizes[1][0], 3, 4)
    assert (verdict.checks, verdict.status) == (0, "clean")

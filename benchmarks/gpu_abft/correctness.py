"""Is it right: against fp64, on clean data by the million, and with faults within the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from gpu_abft.data import KINDS, operands
from gpu_abft.record import Record
from gpu_abft.shapes import Shape
from gpu_abft.variants import Case, case_of, columns_of, launches
from proa_kernels import Verdict
from proa_kernels.gpu.call import run
from proa_kernels.gpu.faults import SITES
from proa_kernels.gpu.launch import choose
from proa_kernels.linear.gpu import checked_linear

# Relative error of a result against fp64, of unit-scale data: rounding of the stored result.
ERROR_MAX = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
SCHEMES = ("tile", "fused")


@dataclass(frozen=True)
class Scale:
    """How much of everything: a whole run, `--quick`, or `--toy` in the CPU interpreter."""

    rows: int
    outputs: int
    inners: tuple[int, ...]
    seeds: int
    faults_per_bit: int
    faults_per_site: int
    kinds: tuple[str, ...] = KINDS


FULL = Scale(8192, 8192, (512, 4096), 2, 48, 400)
QUICK = Scale(8192, 8192, (1024,), 1, 4, 40)
WARM = Scale(512, 512, (512,), 1, 0, 1, ("n01",))  # the same kernels as FULL
TOY = Scale(40, 140, (48,), 1, 0, 1, ("n01",))


def dtypes(device: str) -> tuple[torch.dtype, ...]:
    """The CPU interpreter multiplies bf16 wrongly (triton#11584)."""
    halves = (torch.bfloat16, torch.float16) if device == "cuda" else (torch.float16,)
    return (*halves, torch.float32)


@dataclass(frozen=True)
class Trial:
    """One shape and dtype, checked in every scheme; `faults`: with flipped accumulators too."""

    shape: Shape
    dtype: torch.dtype
    faults: bool = False


def trials(device: str) -> list[Trial]:
    """Few on a GPU: each is compiled for its own kinds of sizes."""
    if device == "cpu":
        small = (Shape(17, 40, 130), Shape(1, 6, 20, 6, 5, 3, 2, 1), Shape(1, 16, 24, 5, 5, 1))
        return [
            Trial(small[0], torch.float16, True), Trial(small[1], torch.float32, True),
            Trial(small[2], torch.float16),
        ]  # fmt: skip
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        Trial(Shape(1, 4096, 1024), bf16), Trial(Shape(64, 1000, 300), bf16, True),
        Trial(Shape(700, 520, 1030), bf16, True), Trial(Shape(700, 520, 1030), fp16),
        Trial(Shape(64, 1000, 300), fp32, True),
        Trial(Shape(2, 64, 128, 56, 57, 3, 1, 1), bf16, True),
        Trial(Shape(2, 3, 64, 65, 66, 7, 2, 3), bf16), Trial(Shape(2, 128, 300, 28, 28, 1), bf16),
    ]  # fmt: skip


def smoke(device: str, record: Record) -> Iterator[dict[str, Any]]:
    """Every trial; those that fail are errors, the others are rows."""
    for one in trials(device):
        with record.trying(f"smoke {one.shape} {_name(one.dtype)}"):
            yield from tried(one, device)


def tried(trial: Trial, device: str) -> Iterator[dict[str, Any]]:
    """Every scheme against fp64. Raises AssertionError where one is wrong, after its row."""
    case = case_of(trial.shape, trial.dtype, device, seed=1)
    exact, launch = _exact(case, trial.shape), launches(case.product)[0]
    for scheme in ("base", *SCHEMES, "dup"):
        case.product.out.fill_(float("nan"))
        result = case.call(scheme, launch)()
        error = _relative(case.product.out, exact)
        one = {
            "shape": str(trial.shape), "dtype": _name(trial.dtype), "scheme": scheme,
            "block": (launch.block_m, launch.block_n, launch.block_k), "error": error,
        }  # fmt: skip
        verdict = Verdict.read(result) if isinstance(result, torch.Tensor) else None
        if verdict is not None:
            one |= {"ratio": verdict.ratio, "alarms": verdict.alarms}
        yield one
        assert error <= ERROR_MAX[trial.dtype], one
        assert verdict is None or verdict.alarms == 0, (one, verdict)
        assert scheme != "dup" or not bool(case.found.any()), one
    if trial.faults:
        _repairs(case, launch)


def _repairs(case: Case, launch: Any) -> None:
    """One flipped accumulator is found, placed and repaired to the bit, by both schemes."""
    row, column = case.product.rows - 1, case.product.outputs - 1
    step = -(-case.product.inner // launch.block_k)
    fault = torch.tensor([1, row, column, step, 1 << 30, 0], dtype=torch.int32)
    fault = fault.to(case.product.x.device)
    for scheme in SCHEMES:
        run(case.product, launch, scheme=scheme, correct=False, fault=None)
        clean = case.product.out.clone()
        found = run(case.product, launch, scheme=scheme, correct=True, fault=fault)
        verdict = Verdict.read(found)
        assert (verdict.alarms, verdict.repaired) == (1, 1), (scheme, verdict)
        assert (verdict.row, verdict.column) == (row, column), (scheme, verdict)
        assert torch.equal(case.product.out, clean), scheme


def calibration(
    device: str, scale: Scale, record: Record, only: torch.dtype | None = None
) -> Iterator[dict[str, Any]]:
    """Clean checks of each dtype, distribution and K: how near to the limit, how many alarm."""
    for dtype in [only] if only else dtypes(device):
        for kind, inner in product(scale.kinds, scale.inners):
            with record.trying(f"calibration {_name(dtype)} {kind} {inner}"):
                yield _clean(device, scale, dtype, kind, inner)


def _clean(device: str, scale: Scale, dtype: torch.dtype, kind: str, inner: int) -> dict[str, Any]:
    verdicts = []
    for seed in range(scale.seeds):
        x, weight = operands(kind, (scale.rows, scale.outputs, inner), dtype, device, seed)
        columns, scales = columns_of(weight)
        for scheme in SCHEMES:
            _, judged = checked_linear(x, weight, None, columns, scales, scheme=scheme)
            verdicts.append(Verdict.read(judged))
    return {
        "dtype": _name(dtype), "distribution": kind, "inner": inner,
        "clean_checks": sum(one.checks for one in verdicts),
        "false_positives": sum(one.alarms for one in verdicts),
        "cleared": sum(one.cleared for one in verdicts),
        "max_ratio": max(one.ratio for one in verdicts),
    }  # fmt: skip


def campaign(
    device: str, scale: Scale, record: Record, only: torch.dtype | None = None
) -> Iterator[dict[str, Any]]:
    """Single flips within the kernels: per bit of the accumulators, and at the other sites."""
    toy = scale is TOY
    kinds, sizes = (("n01",), (20, 24, 32)) if toy else (("n01", "relu"), (256, 256, 1024))
    for dtype in [only] if only else dtypes(device)[: 1 if toy else None]:
        for kind, scheme in product(kinds, SCHEMES):
            with record.trying(f"campaign {_name(dtype)} {kind} {scheme}"):
                x, weight = operands(kind, sizes, dtype, device, 7)
                bench = _Bench(x, weight, columns_of(weight), sizes, kind)
                for bit in range(32 if scale.faults_per_bit else 0):
                    yield bench.flips(scheme, "accumulator", bit, scale.faults_per_bit)
                for site in SITES[1:]:
                    if site != "checksum" or scheme == "tile":
                        yield bench.flips(scheme, site, None, scale.faults_per_site)


@dataclass
class _Bench:
    x: torch.Tensor
    weight: torch.Tensor
    check: tuple[torch.Tensor, torch.Tensor]
    sizes: tuple[int, int, int]
    kind: str

    def flips(self, scheme: str, site: str, bit: int | None, count: int) -> dict[str, Any]:
        """`count` calls with one flip each; `bit` None: any of the value's."""
        clean = self._call(scheme, False, None)[0]
        faults = self._faults(site, bit, count)
        visible, verdicts, wrong = [], [], []
        for fault in faults:
            out, judged = self._call(scheme, False, fault)
            visible.append((out != clean).any())
            verdicts.append(judged)
            wrong.append((self._call(scheme, True, fault)[0] != clean).any())
        judged = torch.stack(verdicts).cpu()
        seen, left = torch.stack(visible).cpu(), torch.stack(wrong).cpu()
        hit = judged[:, 1] > 0
        places = faults[:, 1:3].cpu().double()
        here = hit & (judged[:, 6:8] == places).all(1) if site == "accumulator" else hit & False
        return {
            "dtype": _name(self.x.dtype), "distribution": self.kind, "scheme": scheme,
            "site": site, "fault": "single bit" if bit is None else f"bit {bit}",
            "clean_checks": 0, "false_positives": 0, "injected": count,
            "visible": int(seen.sum()), "detected": int(hit.sum()),
            "visible_detected": int((seen & hit).sum()), "located": int(here.sum()),
            "corrected": int((seen & hit & ~left).sum()),
        }  # fmt: skip

    def _call(
        self, scheme: str, correct: bool, fault: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return checked_linear(
            self.x, self.weight, None, *self.check, scheme=scheme, correct=correct, fault=fault
        )

    def _faults(self, site: str, bit: int | None, count: int) -> torch.Tensor:
        """int32 `[count, 6]`, as of `gpu.faults`."""
        rows, outputs, inner = self.sizes
        at = SITES.index(site)
        generator = torch.Generator().manual_seed(100 * at + (99 if bit is None else bit))

        def below(limit: int) -> torch.Tensor:
            return torch.randint(limit, (count,), generator=generator, dtype=torch.int32)

        launch = choose(rows, outputs, self.x.dtype)
        wide = site in ("accumulator", "checksum") or self.x.dtype == torch.float32
        bits = torch.full((count,), bit) if bit is not None else below(32 if wide else 16)
        height = inner if site == "weight" else rows
        width = {"input": inner, "checksum": 2}.get(site, outputs)
        found = torch.zeros(count, 6, dtype=torch.int32)
        found[:, 0], found[:, 1], found[:, 2] = at, below(height), below(width)
        steps = -(-inner // launch.block_k)
        found[:, 3] = below(steps + 1) if site == "accumulator" else 0
        found[:, 4] = (torch.ones_like(bits, dtype=torch.int64) << bits.long()).to(torch.int32)
        return found.to(self.x.device)


def _exact(case: Case, shape: Shape) -> torch.Tensor:
    """fp64 result of the same operands, laid out as `product.out`."""
    one = case.product
    weight = one.weight.double()
    bias = one.addend[0].double() if one.addend is not None else None
    if not shape.kernel:
        return torch.nn.functional.linear(one.x.double(), weight, bias)
    taps = weight.view(len(weight), shape.kernel, shape.kernel, shape.channels)
    return torch.nn.functional.conv2d(
        one.x.double(), taps.permute(0, 3, 1, 2), bias, shape.stride, shape.padding
    )


def _relative(out: torch.Tensor, exact: torch.Tensor) -> float:
    """NaN, where something was not written, is not below any limit."""
    return float((out.double() - exact).norm() / exact.norm())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

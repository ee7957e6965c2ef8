"""fp32 products from bf16 ones beside SGEMM and TF32: errors against fp64, and times."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from gpu_abft.data import operands
from gpu_abft.timing import Direct, Graph, paired, ratio, timed
from gpu_abft.variants import columns_of
from proa_kernels import Verdict
from proa_kernels.emulated import gpu, reference

PRODUCTS = (3, 6, 9)
_KINDS = ("n01", "uniform", "exponents")


def _matrices(kind: str, size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The three rows of our notes' table: normal, U(0, 1), and exponents from -20 to 20."""
    a, b = operands("n01", (size, size, size), torch.float32, device, 11)
    if kind == "uniform":
        generator = torch.Generator(device).manual_seed(12)
        a, b = (torch.rand(a.shape, generator=generator, device=device) for _ in range(2))
    elif kind == "exponents":
        generator = torch.Generator(device).manual_seed(13)
        for one in (a, b):
            draw = torch.randint(-20, 21, one.shape, generator=generator, device=device)
            one.copy_(torch.ldexp(one, draw))
    return a, b.T.contiguous()


def errors(device: str, size: int) -> list[dict[str, Any]]:
    """Relative Frobenius errors. Raises where x6 or x9 is worse than SGEMM."""
    rows = []
    for kind in _KINDS:
        a, b = _matrices(kind, size, device)
        exact = a.double() @ b.double()
        found = {"sgemm": a @ b}
        if device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = True
            found["tf32"] = a @ b
            torch.backends.cuda.matmul.allow_tf32 = False
        for products in PRODUCTS:
            found[f"bf16x{products}"], fallbacks = gpu.emulated_product(a, b, products)
            assert int(fallbacks) == 0, (kind, products, fallbacks)
        row: dict[str, Any] = {"distribution": kind, "size": size}
        row |= {
            name: float((out.double() - exact).norm() / exact.norm()) for name, out in found.items()
        }
        rows.append(row)
        # The CPU's SGEMM sums in vectors and blocks: as good as a promotion, at toy sizes.
        worst = 2.0 * row["sgemm"] if device == "cpu" else row["sgemm"]
        assert max(row["bf16x6"], row["bf16x9"]) <= worst, row
    return rows


def special(device: str) -> dict[str, Any]:
    """Tiles with NaN, Inf or tiny values fall back; their neighbours do not."""
    a, b = operands("n01", (140, 300, 70), torch.float32, device, 5)
    b = b.T.contiguous()
    a[3, 4], a[135, 2], b[7, 290] = float("inf"), 1e-30, float("nan")
    a[135] *= 1e30
    plain, found = a @ b, {}
    for products in PRODUCTS:
        out, fallbacks = gpu.emulated_product(a, b, products)
        want = reference.emulated_product(a.cpu(), b.cpu(), products)[1]
        assert int(fallbacks) == int(want), (products, fallbacks, want)
        assert torch.equal(torch.isnan(out), torch.isnan(plain)), products
        assert torch.equal(torch.isinf(out), torch.isinf(plain)), products
        found[f"bf16x{products}"] = int(fallbacks)
    return found


def checked(device: str, size: int) -> list[dict[str, Any]]:
    """Row checks of emulated products: none alarms on clean data, a wrong weight does."""
    rows = []
    for kind in ("n01", "relu", "coherent", "outlier", "t3", "cancelling"):
        x, weight = operands(kind, (size, size, size), torch.float32, device, 21)
        columns, scales = columns_of(weight)
        for products in PRODUCTS:
            _, judged, _ = torch.ops.proa.checked_emulated_mm(
                x, weight.T, columns, scales, products
            )
            verdict = Verdict.read(judged)
            rows.append({
                "distribution": kind, "products": products, "clean_checks": verdict.checks,
                "false_positives": verdict.alarms, "max_ratio": verdict.ratio,
            })  # fmt: skip
            assert verdict.alarms == 0, rows[-1]
            wrong = weight.clone()
            wrong[5, 3] += 0.5 * float(weight.abs().max())
            _, judged, _ = torch.ops.proa.checked_emulated_mm(x, wrong.T, columns, scales, products)
            assert Verdict.read(judged).alarms > 0, (kind, products)
    return rows


def warm(products: int) -> None:
    """Compile all launches of one form."""
    a, b = _matrices("n01", 1024, "cuda")
    for one in gpu.LAUNCHES:
        gpu.emulated_product(a, b, products, launch=one)
    torch.cuda.synchronize()


def times(size: int, rounds: int, device: str) -> dict[str, Any]:
    """us and TFLOP/s of 2 n^3, the best of the launches for each form."""
    a, b = _matrices("n01", size, device)
    columns, scales = columns_of(b.T.contiguous())
    forms: dict[str, Graph | Direct] = {"sgemm": timed([lambda: a @ b], device)}
    torch.backends.cuda.matmul.allow_tf32 = True
    forms["tf32"] = timed([lambda: a @ b], device)
    torch.backends.cuda.matmul.allow_tf32 = False
    chosen = {}
    for products in PRODUCTS:
        tried = {
            str(one): timed([partial(gpu.emulated_product, a, b, products, launch=one)], device)
            for one in gpu.LAUNCHES
        }
        best = {name: float(times.min()) for name, times in paired(tried, 3).items()}
        name = min(best, key=lambda one: best[one])
        forms[f"bf16x{products}"], chosen[f"bf16x{products}"] = tried[name], best
    protected = partial(torch.ops.proa.checked_emulated_mm, a, b, columns, scales, 6)
    forms["bf16x6 checked"] = timed([protected], device)
    found = paired(forms, rounds)
    flops = 2.0 * size**3
    return {
        "size": size,
        "launches": chosen,
        "forms": {
            name: {
                "us": float(sorted(times)[len(times) // 2]),
                "tflops": flops / float(sorted(times)[len(times) // 2]) / 1e6,
                "times_sgemm": ratio(found, "sgemm", name),
            }
            for name, times in found.items()
        },
    }

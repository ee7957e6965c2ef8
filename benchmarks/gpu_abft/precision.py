"""fp32 products from bf16 ones beside SGEMM and TF32: errors against fp64, and times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_abft.data import KINDS, operands
from gpu_abft.record import Record
from gpu_abft.timing import Direct, Graph, calls_in_graph, paired, ratio, timed
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


@contextmanager
def _tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def errors(device: str, size: int, record: Record) -> Iterator[dict[str, Any]]:
    """Relative Frobenius errors. An error where x6 or x9 is worse than SGEMM."""
    for kind in _KINDS:
        where = f"emulated_errors {kind}"
        with record.trying(where):
            row = {"distribution": kind, "size": size, **_errors(kind, size, device)}
            yield row
            # The CPU's SGEMM sums in vectors and blocks: as good as a promotion, at toy sizes.
            worst = 2.0 * row["sgemm"] if device == "cpu" else row["sgemm"]
            record.check(max(row["bf16x6"], row["bf16x9"]) <= worst, where, row)
            record.check(not any(row["fallbacks"]), where, row)


def _errors(kind: str, size: int, device: str) -> dict[str, Any]:
    a, b = _matrices(kind, size, device)
    exact = a.double() @ b.double()
    found, fallbacks = {"sgemm": a @ b}, []
    if device == "cuda":
        with _tf32():
            found["tf32"] = a @ b
    for products in PRODUCTS:
        found[f"bf16x{products}"], count = gpu.emulated_product(a, b, products)
        fallbacks.append(int(count))
    wrong = {
        name: float((out.double() - exact).norm() / exact.norm()) for name, out in found.items()
    }
    return {**wrong, "fallbacks": fallbacks}


def special(device: str, record: Record) -> Iterator[dict[str, Any]]:
    """Tiles with NaN, Inf or tiny values fall back; their neighbours do not."""
    a, b = operands("n01", (140, 300, 70), torch.float32, device, 5)
    b = b.T.contiguous()
    a[3, 4], a[135, 2], b[7, 290] = float("inf"), 1e-30, float("nan")
    a[135] *= 1e30
    plain = a @ b
    for products in PRODUCTS:
        with record.trying(f"emulated_special {products}"):
            out, fallbacks = gpu.emulated_product(a, b, products)
            want = reference.emulated_product(a.cpu(), b.cpu(), products)[1]
            row = {
                "products": products, "fallbacks": int(fallbacks), "expected": int(want),
                "same_nan": torch.equal(torch.isnan(out), torch.isnan(plain)),
                "same_inf": torch.equal(torch.isinf(out), torch.isinf(plain)),
            }  # fmt: skip
            yield row
            right = row["fallbacks"] == row["expected"] and row["same_nan"] and row["same_inf"]
            record.check(right, f"emulated_special {products}", row)


def checked(device: str, size: int, record: Record) -> Iterator[dict[str, Any]]:
    """Row checks of emulated products: none alarms on clean data, a wrong weight does."""
    for kind in KINDS:
        x, weight = operands(kind, (size, size, size), torch.float32, device, 21)
        columns, scales = columns_of(weight)
        wrong = weight.clone()
        wrong[5, 3] += 0.5 * float(weight.abs().max())
        for products in PRODUCTS:
            where = f"emulated_checked {kind} x{products}"
            with record.trying(where):
                verdict, wrongs = (
                    Verdict.read(
                        torch.ops.proa.checked_emulated_mm(x, one.T, columns, scales, products)[1]
                    )
                    for one in (weight, wrong)
                )
                row = {
                    "distribution": kind, "products": products, "clean_checks": verdict.checks,
                    "false_positives": verdict.alarms, "max_ratio": verdict.ratio,
                    "alarms_of_a_wrong_weight": wrongs.alarms,
                }  # fmt: skip
                yield row
                record.check(verdict.alarms == 0 and wrongs.alarms > 0, where, row)


def warm(products: int) -> None:
    """Compile all launches of one form."""
    a, b = _matrices("n01", 1024, "cuda")
    for one in gpu.LAUNCHES:
        gpu.emulated_product(a, b, products, launch=one)
    torch.cuda.synchronize()


def times(
    sizes: Sequence[int], rounds: int, device: str, record: Record
) -> Iterator[dict[str, Any]]:
    """us and TFLOP/s of 2 n^3, the best of the launches for each form."""
    for size in sizes:
        with record.trying(f"emulated_times {size}"):
            yield _times(size, rounds, device, record)


def _times(size: int, rounds: int, device: str, record: Record) -> dict[str, Any]:
    a, b = _matrices("n01", size, device)
    columns, scales = columns_of(b.T.contiguous())
    flops = 2.0 * size**3
    timer = partial(timed, count=calls_in_graph(10 * flops, 12.0 * size**2, 1), device=device)
    forms: dict[str, Graph | Direct] = {"sgemm": timer([lambda: a @ b])}
    with _tf32():
        forms["tf32"] = timer([lambda: a @ b])
    chosen = {}
    for products in PRODUCTS:
        tried: dict[str, Graph | Direct] = {}
        for one in gpu.LAUNCHES:
            with record.trying(f"emulated_times {size} x{products} {one}"):
                tried[str(one)] = timer([partial(gpu.emulated_product, a, b, products, launch=one)])
        best = {name: float(found.min()) for name, found in paired(tried, 3).items()}
        if best:
            name = min(best, key=lambda one: best[one])
            forms[f"bf16x{products}"], chosen[f"bf16x{products}"] = tried[name], best
    with record.trying(f"emulated_times {size} checked"):
        protected = partial(torch.ops.proa.checked_emulated_mm, a, b, columns, scales, 6)
        forms["bf16x6 checked"] = timer([protected])
    found = paired(forms, rounds)
    medians = {name: float(np.median(one)) for name, one in found.items()}
    return {
        "size": size,
        "launches": chosen,
        "forms": {
            name: {
                "us": us, "tflops": flops / us / 1e6, "times_sgemm": ratio(found, "sgemm", name),
            }
            for name, us in medians.items()
        },
    }  # fmt: skip

"""Compiles the convolution's, the emulated product's and the benchmark's kernels for compute
capability 9.0, as `compiling.py` does the linear layer's: `python compiling_conv.py WHAT`, one JSON
line per kernel. Runs in a process of its own, without the interpreter.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("kernels", "tests", "benchmarks")]

import torch  # noqa: E402

from kernels import compiling  # noqa: E402


def conv() -> None:
    """3x3 with 64 channels in channels_last, both schemes; then the same grouped."""
    from proa_kernels.conv import gpu
    from proa_kernels.conv.checksum import take

    x = torch.zeros(8, 64, 56, 56, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    weight = torch.zeros(256, 64, 3, 3, dtype=torch.bfloat16)
    check = take(weight, 1)
    for scheme in ("tile", "fused"):
        gpu.checked_conv2d(
            x, weight, weight[:, 0, 0, 0], check.columns, check.scales, stride=[1, 1],
            padding=[1] * 4, dilation=[1, 1], groups=1, correct=True, scheme=scheme,
        )  # fmt: skip


def emulated() -> None:
    """Every launch of bf16x6, and the wide one of the others."""
    from proa_kernels.emulated import gpu

    a = torch.zeros(512, 512)
    for products in (3, 6, 9):
        for launch in gpu.LAUNCHES if products == 6 else gpu.LAUNCHES[:1]:
            gpu.emulated_product(a, a, products, launch=launch)


def benchmark() -> None:
    """The unprotected product and the comparison of `dup`, for a linear layer and a convolution."""
    from gpu_abft.shapes import Shape
    from gpu_abft.variants import case_of, launches

    for shape in (Shape(512, 512, 512), Shape(1, 64, 64, 32, 32, 3, 1, 1)):
        case = case_of(shape, torch.bfloat16, "cpu", 0)
        case.call("dup", launches(case.product)[0])()


def main() -> None:
    made = compiling.collect()
    {"conv": conv, "emulated": emulated, "benchmark": benchmark}[sys.argv[1]]()
    for name, kernel in made:
        ptx = kernel.asm["ptx"]
        found = {
            "kernel": name,
            "shared_bytes": kernel.metadata.shared,
            "matrix_units": len(re.findall(r"wgmma\.mma", ptx)),
            "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*0x10", ptx)),
            **compiling.resources(ptx),
        }
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

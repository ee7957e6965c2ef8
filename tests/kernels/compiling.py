"""Compiles GPU kernels for compute capability 9.0 where there is no GPU. Runs in a process of its
own, without the interpreter: `python compiling.py < request.json`, one JSON line per kernel.

A request: dtype, scheme, sizes (M, N, K), correct, fault, inner_first; or, with `op` "conv", sizes
(B, C, N, H, kernel) of a padded convolution. What is compiled is what the operator would launch:
launches are turned into Triton's own warm-up calls.
--stripped: the kernels' sources are first rid of all that has to do with faults.
--ttir: give Triton's first representation, and stop there.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TARGET = GPUTarget("cuda", 90, 32)


class NoDriver:
    """As much of a driver as compiling asks for."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def collect() -> list[tuple[str, Any]]:
    """From now on launches compile; the list fills with what they made."""
    made: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def compile_only(self: Any, *args: Any, **options: Any) -> None:
        try:
            kernel = launch(self, *args, **{**options, "warmup": True})
        except Early as found:
            kernel = str(found)
        made.append((self.fn.__name__, kernel))

    driver.set_active(NoDriver())
    JITFunction.run = compile_only
    return made


class Early(Exception):
    """Carries a kernel's TTIR out of the compiler."""


def stop_early() -> None:
    """Compile as far as TTIR: what follows depends on it alone, and takes ten times as long."""
    add_stages = nvidia.CUDABackend.add_stages

    def first_stage(self: Any, stages: dict[str, Any], *args: Any) -> None:
        add_stages(self, stages, *args)
        make = stages["ttir"]

        def stop(source: Any, metadata: Any) -> None:
            raise Early(str(make(source, metadata)))

        stages["ttir"] = stop

    nvidia.CUDABackend.add_stages = first_stage


def resources(ptx: str) -> dict[str, int]:
    """Registers and bytes of spills, stack and shared memory, by the assembler that Triton has."""
    path = nvidia.get_ptxas(90).path
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx, encoding="utf-8")
        command = [path, "-v", "-arch=sm_90a", str(source), "-o", str(source) + ".out"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for name, pattern in (
        ("registers", r"Used (\d+) registers"),
        ("spill_bytes", r"(\d+) bytes spill stores"),
        ("stack_bytes", r"(\d+) bytes stack frame"),
    ):
        match = re.search(pattern, said)
        found[name] = int(match.group(1)) if match else 0
    return found


class WithoutFaults(ast.NodeTransformer):
    """Takes out `if INJECT:`, and `fault`, `fault_ptr`, `attempt` and `INJECT` of kernels."""

    names = frozenset(("fault", "fault_ptr", "INJECT", "attempt"))

    def visit_If(self, node: ast.If) -> ast.AST | None:
        found = isinstance(node.test, ast.Name) and node.test.id == "INJECT"
        return None if found else self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.module == "proa_kernels.gpu.faults" else node

    def visit_arguments(self, node: ast.arguments) -> ast.AST:
        node.args = [one for one in node.args if one.arg not in self.names]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        kept: list[ast.expr] = []
        before: ast.expr | None = None
        for one in node.args:
            number = isinstance(one, ast.Constant)
            attempt = number and isinstance(before, ast.Name) and before.id == "fault_ptr"
            before = one
            if not attempt and not (isinstance(one, ast.Name) and one.id in self.names):
                kept.append(one)
        node.args = kept
        return self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> ast.AST:
        pairs = [
            (key, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if not (isinstance(key, ast.Constant) and key.value in self.names)
        ]
        node.keys, node.values = [one[0] for one in pairs], [one[1] for one in pairs]
        return self.generic_visit(node)


def strip_faults(folder: str) -> None:
    """Puts sources that never had an injector in the place of `proa_kernels.gpu`."""
    import proa_kernels.gpu

    for path in Path(proa_kernels.gpu.__path__[0]).glob("*.py"):
        tree = WithoutFaults().visit(ast.parse(path.read_text(encoding="utf-8")))
        if path.stem != "faults":
            (Path(folder) / path.name).write_text(ast.unparse(tree), encoding="utf-8")
    proa_kernels.gpu.__path__ = [folder]


def linear(request: dict[str, Any]) -> None:
    from proa_kernels.checksum import take
    from proa_kernels.linear import gpu

    rows, outputs, inner = request["sizes"]
    dtype = getattr(torch, request["dtype"])
    x, weight = torch.zeros(rows, inner, dtype=dtype), torch.zeros(outputs, inner, dtype=dtype)
    taken = take(weight)
    options = {"fault": torch.zeros(6, dtype=torch.int32)} if request.get("fault") else {}
    gpu.checked_linear(
        x, weight.T.contiguous() if request.get("inner_first") else weight,
        torch.zeros(outputs, dtype=dtype), taken.columns, taken.scales,
        inner_first=bool(request.get("inner_first")), scheme=request["scheme"],
        correct=bool(request.get("correct")), **options,
    )  # fmt: skip


def conv(request: dict[str, Any]) -> None:
    from proa_kernels.conv import gpu
    from proa_kernels.conv.checksum import take

    batch, channels, outputs, side, kernel = request["sizes"]
    dtype = getattr(torch, request["dtype"])
    x = torch.zeros(batch, channels, side, side, dtype=dtype)
    weight = torch.zeros(outputs, channels, kernel, kernel, dtype=dtype)
    taken = take(weight, 1)
    options = {"fault": torch.zeros(6, dtype=torch.int32)} if request.get("fault") else {}
    gpu.checked_conv2d(
        x.to(memory_format=torch.channels_last), weight, None, taken.columns, taken.scales,
        stride=[1, 1], padding=[kernel // 2] * 4, dilation=[1, 1], groups=1,
        scheme=request["scheme"], correct=bool(request.get("correct")), **options,
    )  # fmt: skip


def main(folder: str) -> None:
    if "--stripped" in sys.argv:
        strip_faults(folder)
    if "--ttir" in sys.argv:
        stop_early()
    made = collect()
    for line in sys.stdin:
        request = json.loads(line)
        made.clear()
        {"conv": conv, "linear": linear}[request.get("op", "linear")](request)
        for name, kernel in made:
            found = {"kernel": name}
            if "--ttir" in sys.argv:
                found["ttir"] = kernel
            else:
                ptx = kernel.asm["ptx"]
                shapes = set(re.findall(r"(?:wgmma|mma)\S*\.(m\d+n\d+k\d+)\.", ptx))
                found |= {"shared_bytes": kernel.metadata.shared, "shapes": sorted(shapes)}
                found |= resources(ptx)
            sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as stripped:
        main(stripped)

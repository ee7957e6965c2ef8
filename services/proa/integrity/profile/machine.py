"""The device at hand: its name, and what it reaches at best."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from proa.errors import EnvironmentLacks
from proa.integrity.profile.plan import Device
from proa.integrity.profile.roofline import Machine
from proa.integrity.profile.timing import Call, CpuTimer, CudaTimer, Timer

_CPUINFO = Path("/proc/cpuinfo")
_TRIES = 7


@dataclass(frozen=True)
class Sizes:
    """`gemm`: rows, columns and inner of the large product. `copy_bytes`: beyond every cache."""

    gemm: int
    copy_bytes: int


SIZES = {"cpu": Sizes(1024, 1 << 28), "cuda": Sizes(8192, 1 << 31)}


def device_of(device: str) -> Device:
    """The device `cpu`, `cuda` or `cuda:N` as plans name it. Raises EnvironmentLacks."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise EnvironmentLacks("this machine has no GPU that torch can use")
        return Device(kind, torch.cuda.get_device_name(device), _torch())
    return Device(kind, _cpu_name(), _torch())


def timer_of(device: Device) -> Timer:
    """How calls are timed there."""
    return CudaTimer() if device.kind == "cuda" else CpuTimer()


def measure_machine(
    device: Device, dtypes: Iterable[str], timer: Timer, sizes: Sizes | None = None
) -> Machine:
    """Peaks for these dtypes (torch's names): the fastest of seven products and copies."""
    sizes = sizes or SIZES[device.kind]
    flops = {}
    for dtype in sorted(set(dtypes)):
        call = _product(device.kind, dtype, sizes.gemm)
        if call is not None:
            flops[dtype] = 2.0 * sizes.gemm**3 / _fastest(call, timer)
    source = torch.ones(sizes.copy_bytes // 4, device=device.kind)
    target = torch.empty_like(source)
    copy_s = _fastest(lambda: target.copy_(source), timer)
    one = torch.ones(1, device=device.kind)
    call_s = min(timer.prepare(lambda: torch.neg(one), 100)().wall_s for _ in range(_TRIES)) / 100
    n = sizes.gemm
    return Machine(
        flops_per_s=flops,
        bytes_per_s=2.0 * sizes.copy_bytes / copy_s,
        call_us=call_s * 1e6,
        how={
            "flops_per_s": f"2 n^3 over the fastest of {_TRIES} products of n = {n} before the"
            f" layers were timed and {_TRIES} after",
            "bytes_per_s": "bytes read and written by the fastest of as many copies"
            f" of {sizes.copy_bytes >> 20} MiB",
            "call_us": "torch.neg of one number, 100 in a row",
        },
    )


def best_of(one: Machine, other: Machine) -> Machine:
    """Of two measurements of one device the better: what else ran only ever slows it down."""
    return replace(
        one,
        flops_per_s={
            dtype: max(rate, other.flops_per_s[dtype]) for dtype, rate in one.flops_per_s.items()
        },
        bytes_per_s=max(one.bytes_per_s, other.bytes_per_s),
        call_us=min(one.call_us, other.call_us),
    )


def _product(kind: str, dtype: str, n: int) -> Call | None:
    """A large product, or None where torch has none for this dtype."""
    real: torch.dtype = getattr(torch, dtype)
    if not real.is_floating_point:
        return None
    left, right = (torch.ones(n, n, device=kind).to(real) for _ in range(2))
    try:
        left @ right
    except RuntimeError:
        return None
    return lambda: left @ right


def _fastest(call: Call, timer: Timer) -> float:
    call()
    run = timer.prepare(call, 1)
    return min(run().wall_s for _ in range(_TRIES))


def _torch() -> str:
    """Without the build: which one it is the device says."""
    return str(torch.__version__).partition("+")[0]


def _cpu_name() -> str:
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

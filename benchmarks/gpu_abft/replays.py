"""CUDA graphs of checked operators: a replay must see new data and new faults.

Nothing may be settled at the capture, and no value may have come from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gpu_abft.data import operands
from gpu_abft.record import Record
from gpu_abft.variants import columns_of
from proa_kernels import Verdict
from proa_kernels.conv.gpu import checked_conv2d
from proa_kernels.gpu.launch import choose
from proa_kernels.linear.gpu import checked_linear

SCHEMES = ("tile", "fused")
Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Replayed:
    """One operator of fixed tensors: `call` gives result and verdict of what they hold.

    `hurt` puts a fault in and `heal` takes it out again; `repairs`: whether the result must then be
    the clean one.
    """

    name: str
    x: torch.Tensor
    call: Callable[[], Pair]
    hurt: Callable[[], object]
    heal: Callable[[], object]
    repairs: bool


def graphs(device: str, record: Record) -> Iterator[dict[str, Any]]:
    """Each operator captured once, replayed with its data, other data, a fault, and without it."""
    for one in operators(device):
        with record.trying(f"graphs {one.name}"):
            row = _replays(one, device)
            yield row
            clean, other, hurt, healed = row["alarms"]
            right = clean == other == healed == 0 and hurt > 0 and all(row["same"])
            record.check(right, f"graphs {one.name}", row)


def _replays(one: Replayed, device: str) -> dict[str, Any]:
    replay = _captured(one.call, device)
    first = one.x.clone()
    second = first.flip(0).contiguous(memory_format=_layout(first)) * 2.0
    steps = (
        (first, one.heal, True), (second, one.heal, True), (second, one.hurt, one.repairs),
        (first, one.heal, True),
    )  # fmt: skip
    alarms, same = [], []
    for data, put, alike in steps:
        one.x.copy_(data)
        one.heal()
        want, _ = one.call()
        put()
        out, judged = replay()
        alarms.append(Verdict.read(judged).alarms)
        same.append(not alike or torch.equal(out, want))
    return {"operator": one.name, "alarms": alarms, "same": same}


def _layout(x: torch.Tensor) -> torch.memory_format:
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _captured(call: Callable[[], Pair], device: str) -> Callable[[], Pair]:
    """Without a GPU a replay is a call."""
    if device != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()

    def replay() -> Pair:
        graph.replay()
        return found

    return replay


def operators(device: str) -> Iterator[Replayed]:
    small = device != "cuda"
    dtype = torch.float16 if small else torch.bfloat16
    for scheme in SCHEMES:
        yield _linear(scheme, (8, 140, 64) if small else (256, 256, 512), dtype, device)
    for scheme in SCHEMES:
        yield _conv(scheme, (1, 8, 20, 6) if small else (2, 64, 256, 28), dtype, device)
    for products in (6, 9):
        yield _emulated(products, 24 if small else 512, device)


def _fault(
    rows: int, outputs: int, inner: int, dtype: torch.dtype, device: str
) -> tuple[torch.Tensor, Callable[[], object], Callable[[], object]]:
    """A fault's tensor, and what turns it on and off: an accumulator after the last step."""
    steps = -(-inner // choose(rows, outputs, dtype).block_k)
    fault = torch.zeros(6, dtype=torch.int32, device=device)
    hit = torch.tensor([1, 5, 7, steps, 1 << 30, 0], dtype=torch.int32, device=device)
    return fault, lambda: fault.copy_(hit), fault.zero_


def _linear(scheme: str, sizes: tuple[int, int, int], dtype: torch.dtype, device: str) -> Replayed:
    x, weight = operands("n01", sizes, dtype, device, 3)
    columns, scales = columns_of(weight)
    fault, hurt, heal = _fault(*sizes, dtype, device)

    def call() -> Pair:
        found: Pair = checked_linear(
            x, weight, None, columns, scales, scheme=scheme, correct=True, fault=fault
        )
        return found

    return Replayed(f"linear {scheme}", x, call, hurt, heal, repairs=True)


def _conv(
    scheme: str, sizes: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> Replayed:
    batch, channels, outputs, side = sizes
    inner = channels * 9
    flat, weight = operands("n01", (batch * side * side, outputs, inner), dtype, device, 4)
    x = flat[:, :channels].reshape(batch, side, side, channels).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    columns, scales = columns_of(weight)
    kernel = weight.view(outputs, channels, 3, 3)
    fault, hurt, heal = _fault(batch * side * side, outputs, inner, dtype, device)

    def call() -> Pair:
        found: Pair = checked_conv2d(
            x, kernel, None, columns, scales, stride=[1, 1], padding=[1] * 4, dilation=[1, 1],
            groups=1, scheme=scheme, correct=True, fault=fault,
        )  # fmt: skip
        return found

    return Replayed(f"conv2d {scheme}", x, call, hurt, heal, repairs=True)


def _emulated(products: int, size: int, device: str) -> Replayed:
    """It has no injector and repairs nothing: the fault is a weight that changes in memory."""
    x, weight = operands("n01", (size, size, size), torch.float32, device, 5)
    columns, scales = columns_of(weight)
    right = weight.clone()
    wrong = weight.clone()
    wrong[5, 3] += 2.0

    def call() -> Pair:
        out, judged, _ = torch.ops.proa.checked_emulated_mm(x, weight.T, columns, scales, products)
        return out, judged

    return Replayed(
        f"emulated x{products}", x, call, lambda: weight.copy_(wrong),
        lambda: weight.copy_(right), repairs=False,
    )  # fmt: skip

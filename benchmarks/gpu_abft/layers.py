"""Times of each distinct layer in every form: unprotected, protected by each scheme, the vendor's.

A shape is measured once, whichever networks have it; `networks` makes rows and sums of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gpu_abft.record import Record
from gpu_abft.shapes import Layer, Shape
from gpu_abft.timing import Direct, Graph, calls_in_graph, paired, ratio, timed
from gpu_abft.variants import Call, Case, case_of, launches
from proa_kernels.gpu.launch import Launch

SCHEMES = ("tile", "fused", "dup")
ROTATE_BYTES = 128 << 20  # operands of all calls in a graph: more than the L2 cache holds
SETS_MAX = 8
MEASURE_MS = 200.0  # of paired rounds for one shape


def key_of(shape: Shape) -> str:
    """Of one shape in the results: all that it is."""
    return "x".join(map(str, astuple(shape)))


@dataclass(frozen=True)
class Place:
    """Where layers are measured: the device's kind, and the operands' dtype."""

    kind: str
    dtype: torch.dtype


def bytes_of(shape: Shape) -> int:
    """Of the operands and the result, in half types."""
    return max(1, int(shape.flops / shape.intensity))


def measure(shape: Shape, place: Place, record: Record) -> dict[str, Any]:
    """All forms of one shape: first the best blocks of each, then all of them in turns."""
    if shape.groups > 1:
        return _depthwise(shape, place)
    sets = max(1, min(SETS_MAX, -(-ROTATE_BYTES // bytes_of(shape))))
    count = calls_in_graph(shape.flops, bytes_of(shape), sets)
    cases = [case_of(shape, place.dtype, place.kind, seed) for seed in range(sets)]
    best = {
        scheme: _best(scheme, cases, partial(timed, count=count, device=place.kind), record)
        for scheme in ("base", "tile", "fused")
    }
    forms = {scheme: graph for scheme, (_, graph) in best.items()}
    base_launch = best["base"][0]
    forms["dup"] = timed([case.call("dup", base_launch) for case in cases], count, place.kind)
    forms["vendor"] = timed([case.vendor for case in cases], count, place.kind)
    blocks = {name: _blocks(launch) for name, (launch, _) in best.items()}
    return _compared(forms, {**blocks, "dup": _blocks(base_launch)})


def _best(
    scheme: str, cases: list[Case], timer: Callable[[list[Call]], Graph | Direct], record: Record
) -> tuple[Launch, Graph | Direct]:
    """The fastest of the launches that run at all. Raises where none does."""
    choices, tried = {}, {}
    product = cases[0].product
    for launch in launches(product):
        name = _blocks(launch) + (" sums" if launch.sum_sizes else "")
        where = f"{product.rows}x{product.outputs}x{product.inner} {scheme} {name}"
        with record.trying(where):  # too large a block for this device, say
            calls = [case.call(scheme, launch) for case in cases]
            tried[name], choices[name] = timer(calls), launch
    if not tried:
        raise RuntimeError(f"{scheme}: no block runs")
    times = {name: float(np.median(found)) for name, found in paired(tried, 3).items()}
    at = min(times, key=lambda name: times[name])
    return choices[at], tried[at]


def _blocks(launch: Launch) -> str:
    return f"{launch.block_m}x{launch.block_n}x{launch.block_k} w{launch.warps} s{launch.stages}"


def _depthwise(shape: Shape, place: Place) -> dict[str, Any]:
    """One channel a group: a row check would cost as much as the product. The vendor's kernel,
    twice and compared, is what `dup` means here."""
    generator = torch.Generator(place.kind).manual_seed(0)
    sizes = (shape.rows, shape.channels, shape.high, shape.wide)
    x = torch.randn(sizes, generator=generator, device=place.kind).to(place.dtype)
    x = x.to(memory_format=torch.channels_last)
    taps = (shape.outputs, shape.channels // shape.groups, shape.kernel, shape.kernel)
    weight = torch.randn(taps, generator=generator, device=place.kind).to(place.dtype)

    def once() -> torch.Tensor:
        return torch.nn.functional.conv2d(
            x, weight, None, shape.stride, shape.padding, 1, shape.groups
        )

    def again() -> torch.Tensor:
        return (once().view(torch.int16) != once().view(torch.int16)).any()

    count = calls_in_graph(shape.flops, bytes_of(shape), 1)
    forms = {
        "base": timed([once], count, place.kind), "dup": timed([again], count, place.kind),
    }  # fmt: skip
    forms["vendor"] = forms["base"]
    return _compared(forms, {"base": "vendor", "dup": "vendor"})


def _compared(forms: dict[str, Graph | Direct], chosen: dict[str, str]) -> dict[str, Any]:
    """us of the unprotected and the vendor's form, and the others relative to the former."""
    once_ms = sum(graph.time_us() * graph.count for graph in forms.values()) / 1000.0
    found = paired(forms, int(min(25, max(5, MEASURE_MS / max(once_ms, 0.01)))))
    return {
        "base_us": float(np.median(found["base"])),
        "vendor_us": float(np.median(found["vendor"])),
        "ratios": {name: ratio(found, name, "base") for name in SCHEMES if name in found},
        "blocks": chosen,
    }


def measured(layers: list[Layer], record: Record, place: Place, reserve_s: float) -> Iterator[None]:
    """Fills `shapes` of the record, one at each step, until `reserve_s` are left. What this run has
    tried already, in a process that ended, stays as it is. Raises Lost."""
    shapes: dict[str, Any] = record.found.setdefault("shapes", {})
    for layer in layers:
        key = key_of(layer.shape)
        if record.left_s < reserve_s or shapes.get(key, {}).get("run") == record.run:
            continue
        record.at(key)
        shapes[key] = {"run": record.run, "failed": "see errors"}
        with record.trying(f"{layer.network} {layer.name} {layer.shape}"):
            shapes[key] = {"run": record.run, **measure(layer.shape, place, record)}
        if place.kind == "cuda":
            torch.cuda.empty_cache()
        yield


def warm_tasks(layers: list[Layer]) -> list[Callable[[], None]]:
    """What compiles all that these layers need, each kind of shape once."""
    kinds: dict[str, Shape] = {}
    for layer in layers:
        if layer.shape.groups == 1:
            kinds.setdefault(signature(layer.shape), layer.shape)
    return [lambda one=one: _all_forms(one) for one in kinds.values()]


def _all_forms(shape: Shape) -> None:
    case = case_of(shape, torch.bfloat16, "cuda", 0)
    for launch in launches(case.product):
        for scheme in ("base", *SCHEMES):
            case.call(scheme, launch)()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def signature(shape: Shape) -> str:
    """What decides which variants of the kernels a shape needs: which whole numbers are 1 or
    multiples of 16, and the table of blocks."""
    rows, outputs, inner = shape.product
    high, wide = shape.out_size
    numbers = [rows, outputs, inner]
    if shape.kernel > 1 or shape.stride > 1 or shape.padding:
        numbers += [
            shape.channels, shape.wide, shape.high, wide, high, high * wide, shape.kernel,
            shape.stride, shape.padding, shape.wide * shape.channels, wide * outputs,
        ]  # fmt: skip
    marks = "".join("1" if n == 1 else "d" if n % 16 == 0 else "n" for n in numbers)
    height = next((limit for limit in (16, 32, 64) if rows <= limit), 512)
    return f"{len(numbers)} {marks} {height} {min(128, 1 << (outputs - 1).bit_length())}"

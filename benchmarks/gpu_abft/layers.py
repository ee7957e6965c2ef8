"""Times of every layer of every network, and what a network pays with the best choice per layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpu_abft.record import Record
from gpu_abft.shapes import PAPER_T4, Layer, Shape
from gpu_abft.timing import Direct, Graph, paired, ratio, timed
from gpu_abft.variants import Case, case_of, launches
from proa_kernels.gpu.launch import Launch

SCHEMES = ("tile", "fused", "dup")
ROTATE_BYTES = 128 << 20  # operands of all calls in a graph: more than the L2 cache holds
SETS_MAX = 8
MEASURE_MS = 250.0  # of paired rounds for one shape
COMMAND = "python benchmarks/abft_gpu.py --only '{}'"


@dataclass
class Measured:
    """us of one shape; `times` of each form that could be measured, relative to `base`."""

    base_us: float
    vendor_us: float
    ratios: dict[str, float]
    chosen: dict[str, str]

    @property
    def guided(self) -> str:
        return min(self.ratios, key=lambda name: self.ratios[name])


def bytes_of(shape: Shape) -> int:
    """Of the operands and the result, in half types."""
    return max(1, int(shape.flops / shape.intensity))


@dataclass(frozen=True)
class Place:
    """Where layers are measured: the device's kind and name, and the operands' dtype."""

    kind: str
    name: str
    dtype: torch.dtype


def measure(shape: Shape, place: Place, record: Record) -> Measured:
    """All forms of one shape: first the best blocks of each, then all of them in turns."""
    if shape.groups > 1:
        return _depthwise(shape, place)
    count = max(1, min(SETS_MAX, -(-ROTATE_BYTES // bytes_of(shape))))
    cases = [case_of(shape, place.dtype, place.kind, seed) for seed in range(count)]
    best = {scheme: _best(scheme, cases, place, record) for scheme in ("base", "tile", "fused")}
    forms = {scheme: graph for scheme, (_, graph) in best.items()}
    base_launch = best["base"][0]
    forms["dup"] = timed([case.call("dup", base_launch) for case in cases], place.kind)
    forms["vendor"] = timed([case.vendor for case in cases], place.kind)
    blocks = {name: _blocks(launch) for name, (launch, _) in best.items()}
    return _compared(forms, {**blocks, "dup": _blocks(base_launch)})


def _best(
    scheme: str, cases: list[Case], place: Place, record: Record
) -> tuple[Launch, Graph | Direct]:
    """The fastest of the launches that run at all. Raises where none does."""
    choices, tried = {}, {}
    for launch in launches(cases[0].product):
        name = _blocks(launch) + (" sums" if launch.sum_sizes else "")
        try:
            calls = [case.call(scheme, launch) for case in cases]
            tried[name], choices[name] = timed(calls, place.kind), launch
        except Exception as error:  # noqa: BLE001  # too large a block for this device, say
            record.error(f"{scheme} {name}", repr(error))
    times = {name: float(np.median(found)) for name, found in paired(tried, 3).items()}
    at = min(times, key=lambda name: times[name])
    return choices[at], tried[at]


def _blocks(launch: Launch) -> str:
    return f"{launch.block_m}x{launch.block_n}x{launch.block_k} w{launch.warps} s{launch.stages}"


def _depthwise(shape: Shape, place: Place) -> Measured:
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

    forms = {"base": timed([once], place.kind), "dup": timed([again], place.kind)}
    forms["vendor"] = forms["base"]
    return _compared(forms, {"base": "vendor", "dup": "vendor"})


def _compared(forms: dict[str, Graph | Direct], chosen: dict[str, str]) -> Measured:
    once = sum(graph.time_us() * graph.count for graph in forms.values()) / 1000.0
    found = paired(forms, int(min(25, max(5, MEASURE_MS / max(once, 0.01)))))
    base_us = float(np.median(found["base"]))
    vendor_us = float(np.median(found["vendor"]))
    ratios = {name: ratio(found, name, "base") for name in SCHEMES if name in found}
    return Measured(base_us, vendor_us, ratios, chosen)


def run(layers: list[Layer], record: Record, place: Place) -> dict[str, Any]:
    """Rows of all layers, and the sums of each network whose layers were all measured."""
    known: dict[Shape, Measured | str] = {}
    rows: list[dict[str, Any]] = []
    record.found["rows"] = rows
    for layer in layers:
        if layer.shape not in known:
            known[layer.shape] = _try(layer, record, place)
            torch.cuda.empty_cache()
            record.save()
        rows += _rows(layer, known[layer.shape], place.name)
    names = dict.fromkeys(layer.network for layer in layers)
    return {name: _network([x for x in layers if x.network == name], known) for name in names}


def _try(layer: Layer, record: Record, place: Place) -> Measured | str:
    missing = "not measured: " + COMMAND.format(layer.network)
    if record.left_s < 5.0:
        return missing
    try:
        return measure(layer.shape, place, record)
    except Exception as error:  # noqa: BLE001  # the other layers must not be lost
        record.error(f"{layer.network} {layer.name} {layer.shape}", repr(error))
        return missing


def _rows(layer: Layer, found: Measured | str, device: str) -> list[dict[str, Any]]:
    shape = layer.shape
    common = {
        "device": device, "network": layer.network, "layer": layer.name, "shape": str(shape),
        "count": layer.count, "intensity": round(shape.intensity, 1),
    }  # fmt: skip
    if isinstance(found, str):
        empty = dict.fromkeys(("base_us", "protected_us", "vendor_us", "overhead"))
        return [{**common, "scheme": scheme, **empty, "note": found} for scheme in SCHEMES]
    return [
        {
            **common, "scheme": scheme, "base_us": found.base_us,
            "protected_us": found.base_us * value, "vendor_us": found.vendor_us,
            "overhead": value - 1.0, "guided": scheme == found.guided,
            "blocks": found.chosen.get(scheme, ""),
        }
        for scheme, value in found.ratios.items()
    ]  # fmt: skip


def _network(layers: list[Layer], known: dict[Shape, Measured | str]) -> dict[str, Any]:
    """Sums over layers. A layer that a scheme cannot protect (depthwise) counts as `dup` there."""
    paper = PAPER_T4.get(layers[0].network, (None, None))
    result: dict[str, Any] = {
        "layers": len(layers), "paper_t4_global_percent": paper[0],
        "paper_t4_guided_percent": paper[1],
    }  # fmt: skip
    missing = [layer.name for layer in layers if isinstance(known[layer.shape], str)]
    if missing:
        command = COMMAND.format(layers[0].network)
        return {**result, "note": f"not measured: {command}", "missing": missing}
    found = [(layer.count, known[layer.shape]) for layer in layers]
    whole = [(count, one) for count, one in found if isinstance(one, Measured)]
    base = sum(count * one.base_us for count, one in whole)
    result |= {"base_us": base, "vendor_us": sum(count * one.vendor_us for count, one in whole)}
    for scheme in (*SCHEMES, "guided"):
        spent = sum(
            count * one.base_us * one.ratios.get(one.guided if scheme == "guided" else scheme,
                                                 one.ratios["dup"])
            for count, one in whole
        )  # fmt: skip
        result[f"{scheme}_percent"] = 100.0 * (spent / base - 1.0)
    return result


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

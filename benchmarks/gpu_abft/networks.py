"""Rows of all layers, and what a network pays, made of the shapes that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from gpu_abft.layers import SCHEMES, key_of
from gpu_abft.shapes import PAPER_T4, Layer

COMMAND = "python benchmarks/abft_gpu.py --only '{}'"
Measured = Mapping[str, Any]


def results(
    layers: list[Layer], shapes: Mapping[str, Measured], device: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of these layers, and sums of their networks, with notes on what is missing."""
    rows = [row for layer in layers for row in _rows(layer, _found(layer, shapes), device)]
    sums = {}
    for name, group in groupby(layers, key=lambda layer: layer.network):
        assert name not in sums, "a network's layers are together"
        sums[name] = _network(list(group), shapes)
    return rows, sums


def _found(layer: Layer, shapes: Mapping[str, Measured]) -> Measured | None:
    found = shapes.get(key_of(layer.shape))
    return None if found is None or "failed" in found else found


def _guided(found: Measured) -> str:
    """The cheapest scheme."""
    ratios: Mapping[str, float] = found["ratios"]
    return min(ratios, key=lambda name: ratios[name])


def _missing(layer: Layer) -> str:
    return "not measured: " + COMMAND.format(layer.network)


def _rows(layer: Layer, found: Measured | None, device: str) -> list[dict[str, Any]]:
    shape = layer.shape
    common = {
        "device": device, "network": layer.network, "layer": layer.name, "shape": str(shape),
        "count": layer.count, "intensity": round(shape.intensity, 1),
    }  # fmt: skip
    if found is None:
        empty = dict.fromkeys(("base_us", "protected_us", "vendor_us", "overhead"))
        return [{**common, "scheme": one, **empty, "note": _missing(layer)} for one in SCHEMES]
    return [
        {
            **common, "scheme": scheme, "base_us": found["base_us"],
            "protected_us": found["base_us"] * value, "vendor_us": found["vendor_us"],
            "overhead": value - 1.0, "guided": scheme == _guided(found),
            "blocks": found["blocks"].get(scheme, ""),
        }
        for scheme, value in found["ratios"].items()
    ]  # fmt: skip


def _network(layers: list[Layer], shapes: Mapping[str, Measured]) -> dict[str, Any]:
    """Sums over the layers that were measured. One that a scheme cannot protect (depthwise) counts
    as `dup` there."""
    paper = PAPER_T4.get(layers[0].network, (None, None))
    result: dict[str, Any] = {
        "layers": len(layers), "paper_t4_global_percent": paper[0],
        "paper_t4_guided_percent": paper[1],
    }  # fmt: skip
    pairs = [(layer, _found(layer, shapes)) for layer in layers]
    missing = [layer.name for layer, found in pairs if found is None]
    if missing:
        result |= {"note": _missing(layers[0]), "missing": missing}
    whole = [(layer.count, found) for layer, found in pairs if found is not None]
    if not whole:
        return result
    base = sum(count * one["base_us"] for count, one in whole)
    result |= {"base_us": base, "vendor_us": sum(count * one["vendor_us"] for count, one in whole)}
    for scheme in (*SCHEMES, "guided"):
        spent = 0.0
        for count, one in whole:
            name = _guided(one) if scheme == "guided" else scheme
            spent += count * one["base_us"] * one["ratios"].get(name, one["ratios"]["dup"])
        result[f"{scheme}_percent"] = 100.0 * (spent / base - 1.0)
    return result

"""Rows and campaign objects of a record of benchmarks/abft_gpu.py, also where there is none: what
was not measured says so, with its command and beside the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gpu_abft.shapes import PAPER_T4, networks

DEVICE = "GPU of compute capability 9.0"
COMMAND = "python benchmarks/abft_gpu.py"
SCHEMES = ("tile", "fused", "dup", "guided")
WHOLE = "all"
PRODUCT = "fp32 product"  # the name of emulated products among the networks
SIZES = (4096, 8192)
FORMS = ("tf32", "bf16x3", "bf16x6", "bf16x9", "bf16x6 checked")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_EMPTY = {"base_us": None, "protected_us": None, "vendor_us": None, "overhead": None}
Row = dict[str, Any]
Record = Mapping[str, Any]


def gpu_rows(record: Record) -> list[Row]:
    """Of single products and of emulated ones, and what is missing of both. `record` may be {}."""
    device = record.get("environment", {}).get("device", DEVICE)
    return [*record.get("rows", []), *_networks(record), *_emulated(record, device)]


def _networks(record: Record) -> Iterator[Row]:
    """A row for each scheme of each network that the record lacks."""
    known = record.get("networks", {})
    for name in dict.fromkeys(layer.network for layer in networks()):
        if name in known:
            continue
        paper = PAPER_T4.get(name, (None, None))
        for scheme in SCHEMES:
            yield {
                "device": DEVICE, "network": name, "layer": WHOLE, "shape": "", "scheme": scheme,
                **_EMPTY, "paper_t4_global_percent": paper[0], "paper_t4_guided_percent": paper[1],
                "note": "not measured", "command": f"{COMMAND} --only '{name}'",
            }  # fmt: skip


def _emulated(record: Record, device: str) -> Iterator[Row]:
    """Products of fp32 matrices made otherwise, beside SGEMM."""
    measured = {one["size"]: one["forms"] for one in record.get("emulated_times", [])}
    for size in SIZES:
        forms = measured.get(size, {})
        row = {"network": PRODUCT, "layer": WHOLE, "shape": f"{size}x{size}x{size}"}
        for form in FORMS:
            if form in forms and "sgemm" in forms:
                sgemm_us, us = forms["sgemm"]["us"], forms[form]["us"]
                yield {
                    "device": device, **row, "scheme": form, "base_us": sgemm_us,
                    "protected_us": us, "vendor_us": sgemm_us, "overhead": us / sgemm_us - 1.0,
                }  # fmt: skip
            else:
                yield {
                    "device": DEVICE, **row, "scheme": form, **_EMPTY, "note": "not measured",
                    "command": COMMAND,
                }  # fmt: skip


def gpu_cells(record: Record) -> list[Row]:
    """Objects of the campaign: clean checks of the calibration, and faults within the kernels."""
    device = record.get("environment", {}).get("device", DEVICE)
    clean = [
        {
            "scheme": "tile and fused", **one, "site": "clean", "fault": "none", "injected": 0,
            "visible": 0, "detected": 0, "located": 0, "corrected": 0,
        }
        for one in record.get("calibration", [])
    ]  # fmt: skip
    return [_cell(one, device) for one in [*clean, *record.get("campaign", [])]]


def _cell(one: Row, device: str) -> Row:
    return {
        "device": device,
        **one,
        "op": one.get("op", "linear"),
        "dtype": DTYPES.get(one["dtype"], one["dtype"]),
    }

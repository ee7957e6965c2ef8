"""plan.json: what `proa abft profile` wrote, as far as `proa pack` and a worker need it. No torch.

A plan is for one model, its weights and one kind of device: measured elsewhere its times mean
nothing, so it is refused there, with the name of the field that differs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proa.errors import SpecError
from proa.integrity.profile.choice import NONE, SCHEMES, Cost, Expense, left_out

FORMAT = "proa-plan-1"
BYTES_MAX = 1 << 26
_SHOWN = 12  # digits of a hash in messages


@dataclass(frozen=True)
class Device:
    """`kind`: cpu or cuda. `name`: of the processor or GPU. `torch`: its version."""

    kind: str
    name: str
    torch: str


@dataclass(frozen=True)
class ModelKey:
    """`graph`: hash over the products (names, operators, dtypes, weights' shapes), the same for
    every training of a model. `weights`: `proa_kernels.weights_digest`. `program`: sha256 of the
    file that was profiled, for the record: a new export of the same model is not another model."""

    graph: str
    weights: str
    program: str


@dataclass(frozen=True)
class Plan:
    """The scheme of each layer, by its name in the coverage report, and what that costs. `sha256`:
    of the file."""

    sha256: str
    device: Device
    model: ModelKey
    layers: Mapping[str, str]
    expenses: tuple[Expense, ...]

    def check_model(self, found: ModelKey) -> None:
        """Raises SpecError where this plan is for another model, or for other weights."""
        for field, what in (("graph", "layers"), ("weights", "weights")):
            made, here = getattr(self.model, field), getattr(found, field)
            if made != here:
                raise SpecError(
                    f"plan: model.{field}: it was made for other {what}"
                    f" ({made[:_SHOWN]}…, this program has {here[:_SHOWN]}…)"
                )

    def check_device(self, found: Device) -> None:
        """Raises SpecError where this plan is for another device, or another version of torch."""
        device_differs(self.device, found)

    def left_out(self, percent_max: float | None) -> list[str]:
        """Layers to leave unchecked so that the checks cost at most so much at each batch size."""
        return [] if percent_max is None else left_out(self.expenses, percent_max)


def device_differs(made: Device, here: Device) -> None:
    """Raises SpecError where a plan is `made` for another device, or version of torch, than is
    `here`."""
    for field in ("kind", "name", "torch"):
        one, other = getattr(made, field), getattr(here, field)
        if one != other:
            raise SpecError(f"plan: device.{field}: it was made for {one!r}, here is {other!r}")


def read_plan(path: Path, sha256: str | None = None) -> Plan:
    """The plan in `path`, which must have that hash. Raises SpecError, which names the field."""
    try:
        if path.stat().st_size > BYTES_MAX:
            raise SpecError(f"{path}: larger than {BYTES_MAX} bytes")
        content = path.read_bytes()
    except OSError as exc:
        raise SpecError(f"{path}: cannot be read: {exc.strerror}") from exc
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and sha256 != found:
        raise SpecError(f"{path}: its sha256 is {found}, expected {sha256}")
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise SpecError(f"{path}: not JSON: {exc}") from exc
    try:
        return _plan(tree, found)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise SpecError(f"{path}: not a plan of `proa abft profile`: {exc!r}") from exc


def _plan(tree: Mapping[str, Any], sha256: str) -> Plan:
    if tree["format"] != FORMAT:
        raise ValueError(f"format {tree['format']!r}, not {FORMAT!r}")
    device, model = tree["device"], tree["model"]
    layers = {str(name): str(scheme) for name, scheme in tree["layers"].items()}
    for name, scheme in layers.items():
        if scheme not in (NONE, *SCHEMES):
            raise ValueError(f"layers: {name}: scheme {scheme!r}")
    return Plan(
        sha256,
        Device(*(_text(device[key]) for key in ("kind", "name", "torch"))),
        ModelKey(*(_text(model[key]) for key in ("graph", "weights", "program"))),
        layers,
        tuple(_expense(one, layers) for one in tree["buckets"]),
    )


def _expense(tree: Mapping[str, Any], layers: Mapping[str, str]) -> Expense:
    """Times of single layers, scaled up where the whole program showed that they are too short:
    one after another they find their operands in the caches."""
    program = {key: _number(tree["program"][f"{key}_us"]) for key in ("base", "plan", "verdicts")}
    costs = _costs(tree["layers"], layers)
    summed = program["verdicts"] + sum(max(0.0, cost.extra_us) for cost in costs)
    scale = max(1.0, (program["plan"] - program["base"]) / summed) if summed else 1.0
    return Expense(
        program["base"],
        program["verdicts"] * scale,
        tuple(replace(cost, extra_us=cost.extra_us * scale) for cost in costs),
    )


def _costs(rows: Sequence[Mapping[str, Any]], layers: Mapping[str, str]) -> tuple[Cost, ...]:
    """What the plan's scheme adds to each layer it checks."""
    found = []
    for row in rows:
        scheme = layers.get(row["layer"], NONE)
        if scheme != NONE:
            extra_us = _number(row["schemes"][scheme]["us"]) - _number(row["base_us"])
            found.append(Cost(row["layer"], int(row["flops"] or 0), extra_us))
    return tuple(found)


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r} is not a time")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value

"""Batches of a program's inputs: from arrays of a file, or random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from proa.errors import InvalidRequest

BATCH_MAX = 8
RANDOM = 32  # inputs, where there is no file
VARIABLE = -1  # a size that a program leaves open
_VARIABLE_SIZE = 1  # what random inputs take for it
_INPUTS_MAX = 4096

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Input:
    """`shape`: with the batch axis first; VARIABLE where the program leaves a size open."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def inputs_of(program: ExportedProgram, names: Sequence[str] = ()) -> list[Input]:
    """What the program takes, in order; `names` of a spec in the place of the graph's own."""
    values = {
        node.name: node.meta.get("val")
        for node in program.graph_module.graph.nodes
        if node.op == "placeholder"
    }
    found = []
    for at, placeholder in enumerate(program.graph_signature.user_inputs):
        value = values.get(str(placeholder))
        if not isinstance(value, torch.Tensor) or not value.dim():
            raise InvalidRequest(f"input {placeholder}: not a tensor with a batch axis")
        sizes = tuple(size if isinstance(size, int) else VARIABLE for size in value.shape)
        name = names[at] if at < len(names) else str(placeholder)
        found.append(Input(name, value.dtype, sizes))
    if names and len(names) != len(found):
        raise InvalidRequest(f"the program takes {len(found)} inputs, the spec has {len(names)}")
    return found


def batches_of(inputs: Sequence[Input], arrays: Mapping[str, NDArray[Any]]) -> list[Batch]:
    """All of the arrays, in batches that the program takes; a rest too small for it is left out.

    Raises InvalidRequest, naming the input, what is expected and what is there.
    """
    tensors = [_tensor(one, arrays, alone=len(inputs) == 1) for one in inputs]
    count = min(len(tensor) for tensor in tensors)
    if count != max(len(tensor) for tensor in tensors):
        raise InvalidRequest("--inputs: arrays of one length are needed")
    size = _batch_size(inputs)
    if inputs[0].shape[0] == VARIABLE:
        size = max(1, min(size, count))
    starts = range(0, min(count, _INPUTS_MAX) - size + 1, size)
    if not starts:
        raise InvalidRequest(f"--inputs: {count} of them; the program takes batches of {size}")
    return [tuple(tensor[at : at + size] for tensor in tensors) for at in starts]


def random_batches(inputs: Sequence[Input], seed: int) -> list[Batch]:
    """Normal numbers, or whole numbers 0 and 1."""
    dice = torch.Generator().manual_seed(seed)
    size = _batch_size(inputs)
    count = max(1, RANDOM // size)
    return [tuple(_random(one, size, dice) for one in inputs) for _ in range(count)]


def _batch_size(inputs: Sequence[Input]) -> int:
    fixed = {one.shape[0] for one in inputs} - {VARIABLE}
    if len(fixed) > 1:
        raise InvalidRequest("the program's inputs have batches of several sizes")
    return fixed.pop() if fixed else BATCH_MAX


def _random(one: Input, batch: int, dice: torch.Generator) -> torch.Tensor:
    rest = [_VARIABLE_SIZE if size == VARIABLE else size for size in one.shape[1:]]
    if one.dtype.is_floating_point:
        return torch.randn((batch, *rest), generator=dice).to(one.dtype)
    return torch.randint(2, (batch, *rest), generator=dice).to(one.dtype)


def _tensor(one: Input, arrays: Mapping[str, NDArray[Any]], *, alone: bool) -> torch.Tensor:
    """The array of that name; for an only input, the only one whose shape fits."""
    value = arrays.get(one.name)
    if value is None:
        fitting = [name for name, array in arrays.items() if _fits(one, array)] if alone else []
        if len(fitting) != 1:
            there = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
            raise InvalidRequest(
                f"--inputs: no array {one.name!r} {_expected(one)}; it has {there}"
            )
        value = arrays[fitting[0]]
    if not _fits(one, value):
        raise InvalidRequest(
            f"--inputs: {one.name!r} is {list(value.shape)}, the program takes {_expected(one)}"
        )
    if value.dtype.kind not in "fiub" or (
        value.dtype.kind == "f" and not one.dtype.is_floating_point
    ):
        raise InvalidRequest(f"--inputs: {one.name!r} is of {value.dtype}, not {one.dtype}")
    return torch.from_numpy(np.ascontiguousarray(value)).to(one.dtype)


def _fits(one: Input, array: NDArray[Any]) -> bool:
    sizes = zip(array.shape[1:], one.shape[1:], strict=False)
    return array.ndim == len(one.shape) and all(b in (a, VARIABLE) for a, b in sizes)


def _expected(one: Input) -> str:
    sizes = ["n", *("any" if size == VARIABLE else str(size) for size in one.shape[1:])]
    return f"[{', '.join(sizes)}]"

"""Programs on disk and offline: export a net to `.pt2`, run a program on arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from proa import wire
from proa.errors import BadAnswer
from proa.spec import TensorSpec
from proa.train.checkpoint import sha256_of

Array = NDArray[Any]
Arrays = Mapping[str, Array]
# Tensors [b, ...] in spec order -> a tensor or several. What `worker.programs.load` returns is one.
Program = Callable[..., Any]
# Named arrays -> named arrays, any number of queries.
Predict = Callable[[Arrays], dict[str, Array]]


def export(net: nn.Module, inputs: Sequence[TensorSpec], max_batch: int, path: Path) -> str:
    """Write `net` (fp32) as the program `path`, batch axis 1..max_batch, and its weights beside it
    as .safetensors. Returns the sha256 of the program."""
    net.eval()
    queries = tuple(torch.zeros(min(2, max_batch), *spec.shape) for spec in inputs)
    batch = torch.export.Dim("batch", min=1, max=max_batch) if max_batch > 1 else None
    # CodedNet takes *inputs: one list of shapes for its one variadic argument.
    shapes = tuple({0: batch} if batch is not None else None for _ in queries)
    variadic = any(p.kind == p.VAR_POSITIONAL for p in _parameters(net))
    with torch.no_grad():
        program = torch.export.export(
            net, queries, dynamic_shapes=(shapes,) if variadic else shapes
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"_{path.stem}.tmp.pt2")
    torch.export.save(program, scratch)
    scratch.replace(path)
    weights = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(weights, path.with_suffix(".safetensors"))
    return sha256_of(path)


def _parameters(net: nn.Module) -> Sequence[Any]:
    return list(inspect.signature(net.forward).parameters.values())


def reference_outputs(
    program: Program,
    queries: Arrays,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    batch: int = 8,
) -> dict[str, Array]:
    """Run `program` offline: what a worker answers to these queries, up to the last bits.

    queries: name -> [n, ...], cast to the dtypes of `inputs`; run `batch` (at most the program's
    max batch) at a time. Returns name -> [n, ...]; BF16 comes as fp32. Errors: BadAnswer.
    """
    n = len(queries[inputs[0].name])
    parts: list[list[Array]] = [[] for _ in outputs]
    with torch.inference_mode():
        for start in range(0, n, batch):
            chunk = slice(start, start + batch)
            found = program(*(_tensor(queries[spec.name][chunk], spec.dtype) for spec in inputs))
            answers = (found,) if isinstance(found, torch.Tensor) else tuple(found)
            if len(answers) != len(outputs):
                raise BadAnswer(f"the program has {len(answers)} outputs, not {len(outputs)}")
            for part, answer in zip(parts, answers, strict=True):
                part.append(_array(answer))
    return {spec.name: np.concatenate(p) for spec, p in zip(outputs, parts, strict=True)}


def predictor(
    program: Program,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    batch: int = 8,
    parity: bool = False,
) -> Predict:
    """`program` over named arrays; with `parity`, one that takes fp32 whatever the model takes."""
    takes = [TensorSpec(s.name, "FP32", s.shape) for s in inputs] if parity else list(inputs)

    def predict(queries: Arrays) -> dict[str, Array]:
        return reference_outputs(program, queries, takes, outputs, batch=batch)

    return predict


def _tensor(array: Array, dtype: str) -> torch.Tensor:
    if dtype == "BF16":
        return torch.from_numpy(array.astype(np.float32)).bfloat16()
    return torch.from_numpy(np.ascontiguousarray(array, dtype=wire.DTYPES[dtype]))


def _array(tensor: torch.Tensor) -> Array:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()

"""What the workload asks, and what the right answers are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.client import Answer, AsyncClient, Metadata
from proa.client.values import TensorInfo
from proa.errors import InvalidRequest
from proa.wire import DTYPES
from proa_chaos.experiment import Workload

Array = NDArray[Any]
Arrays = Mapping[str, Array]

# The same machine computes another batch position with other last bits.
RTOL, ATOL = 1e-3, 1e-3
VARIABLE_AXIS = 1
FILE_BYTES_MAX = 1 << 30
LABELS = "labels"


@dataclass(frozen=True)
class Queries:
    """Queries with their exact answers, each a batch of one, and labels where there are any."""

    inputs: Sequence[Arrays]
    outputs: Sequence[Arrays]
    labels: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def is_wrong(self, index: int, answer: Answer) -> bool:
        """Whether an answer that claims to be exact differs from the reference."""
        if answer.reconstructed:
            return False
        want = self.outputs[index % len(self)]
        got = answer.outputs
        return any(name not in got or not same(got[name], want[name]) for name in want)

    def is_right(self, index: int, answer: Answer) -> bool:
        """Whether the answer is as good as exact: the arg-max of its first output is the label's,
        or the reference's; a single number is close to it."""
        which = index % len(self)
        name, want = next(iter(self.outputs[which].items()))
        got = answer.outputs.get(name)
        if got is None or got.shape != want.shape:
            return False
        if got.size < 2:
            return same(got, want)
        label = self.labels[which] if self.labels else int(want.argmax())
        return int(got.argmax()) == label


def same(got: Array, want: Array) -> bool:
    """Whether two answers of one query agree, up to rounding."""
    if got.shape != want.shape:
        return False
    if got.dtype.kind not in "fV":
        return bool(np.array_equal(got, want))
    a, b = got.astype(np.float64), want.astype(np.float64)
    return bool(np.allclose(a, b, rtol=RTOL, atol=ATOL, equal_nan=True))


async def prepare_queries(
    client: AsyncClient, model: str, workload: Workload, seed: int
) -> Queries:
    """The queries of a run. References that the file lacks are asked for, exactly, before it.

    Errors: InvalidRequest (a file that does not fit the model), and what the model answers.
    """
    metadata = await client.metadata(model)
    found = _read(workload.inputs, metadata) if workload.inputs else {}
    if found:
        count = min(workload.queries, len(next(iter(found.values()))))
    else:
        count = workload.queries
        found = _random(metadata.inputs, count, seed)
    rows = [{t.name: found[t.name][i : i + 1] for t in metadata.inputs} for i in range(count)]
    names = [t.name for t in metadata.outputs]
    if all(name in found for name in names):
        outputs: list[Arrays] = [{n: found[n][i : i + 1] for n in names} for i in range(count)]
    else:
        outputs = [await _reference(client, model, row) for row in rows]
    labels = [int(label) for label in found[LABELS][:count]] if LABELS in found else None
    return Queries(rows, outputs, labels)


async def _reference(client: AsyncClient, model: str, row: Arrays) -> Arrays:
    async with asyncio.timeout(60):
        return (await client.infer(model, row, exact=True, deadline_s=30.0)).outputs


def _read(path: Path, metadata: Metadata) -> dict[str, Array]:
    """Arrays by tensor name, from an .npz; one of another name is taken where its shape fits."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise InvalidRequest(f"{path}: larger than {FILE_BYTES_MAX} bytes")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
            shapes = _shapes(arrays)
    except (OSError, ValueError, TypeError) as exc:
        raise InvalidRequest(f"{path}: not an .npz file: {exc}") from exc
    found = {LABELS: arrays[LABELS]} if LABELS in arrays else {}
    for tensor in (*metadata.inputs, *metadata.outputs):
        fits = [name for name, array in arrays.items() if _fits(array, tensor)]
        chosen = tensor.name if tensor.name in fits else fits[0] if len(fits) == 1 else None
        if chosen is not None:
            found[tensor.name] = arrays.pop(chosen)  # nobody else's
    complete = all(t.name in found for t in metadata.inputs)
    lengths = {len(array) for array in found.values()}
    if not complete or len(lengths) != 1 or 0 in lengths:
        raise InvalidRequest(
            f"{path}: needs arrays of one length for the inputs of model {metadata.name!r}"
            f" ({', '.join(t.name for t in metadata.inputs)}); it has {shapes}"
        )
    return found


def _fits(array: Array, tensor: TensorInfo) -> bool:
    shape = tensor.shape[1:]  # without the batch axis
    return (
        array.dtype == DTYPES.get(tensor.dtype)
        and array.ndim == len(shape) + 1
        and all(want in (-1, got) for want, got in zip(shape, array.shape[1:], strict=True))
    )


def _shapes(arrays: Arrays) -> str:
    return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items()) or "none"


def _random(tensors: Sequence[TensorInfo], count: int, seed: int) -> dict[str, Array]:
    """Numbers in [0, 1), or zeros and ones; the first axis counts the queries."""
    rng = np.random.default_rng(seed)
    found = {}
    for tensor in tensors:
        if tensor.dtype == "BYTES":
            raise InvalidRequest(f"input {tensor.name!r} is of BYTES: give `inputs`")
        shape = [count, *(n if n > 0 else VARIABLE_AXIS for n in tensor.shape[1:])]
        whole = "INT" in tensor.dtype or tensor.dtype == "BOOL"
        values = rng.integers(0, 2, shape) if whole else rng.random(shape)
        found[tensor.name] = values.astype(DTYPES[tensor.dtype])
    return found

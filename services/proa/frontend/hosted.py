"""What a worker says it hosts, and whether that is what a spec describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import model_config_pb2

from proa.dispatch.events import DEPLOYED, PARITY
from proa.spec import CodedModel, TensorSpec

PACKAGE, PROGRAMS, CODE = "proa.package", "proa.programs", "proa.code"


@dataclass(frozen=True)
class Hosted:
    """`package`: the hash, "" for a model that is no package of ours; `code`: what its parity
    programs were made for, as `sum:2:1`."""

    package: str = ""
    programs: frozenset[str] = frozenset((DEPLOYED,))
    code: str = ""

    def roles(self, spec: CodedModel) -> frozenset[str]:
        """What it can do for `spec`. A parity program of another code would be decoded wrongly."""
        red = spec.redundancy
        able = self.programs & {DEPLOYED}
        rows = {f"{PARITY}.{row}" for row in range(red.r)}
        if spec.has_parity and rows <= self.programs and self.code == code_of(spec):
            able |= {PARITY}
        return able


def code_of(spec: CodedModel) -> str:
    """The code of `spec`, as packages name it."""
    red = spec.redundancy
    return f"{red.coder}:{red.k}:{red.r}"


def read_hosted(config: Any) -> Hosted:
    """From the ModelConfig of a worker."""
    parameters = config.parameters
    if PACKAGE not in parameters:
        return Hosted()
    programs = frozenset(parameters[PROGRAMS].string_value.split(","))
    code = parameters[CODE].string_value if CODE in parameters else ""
    return Hosted(parameters[PACKAGE].string_value, programs, code)


def misfit(config: Any, spec: CodedModel) -> str:
    """Why queries of `spec` do not fit the worker of this ModelConfig; "" if they do.

    A model that is no package of ours need not list its tensors; what it lists is compared.
    """
    ours = PACKAGE in config.parameters
    if ours and config.max_batch_size < spec.model.max_batch:
        return f"its batch is at most {config.max_batch_size}, not {spec.model.max_batch}"
    batched = config.max_batch_size > 0
    return _misfit("input", config.input, spec.model.inputs, ours=ours, batched=batched) or _misfit(
        "output", config.output, spec.model.outputs, ours=ours, batched=batched
    )


def _misfit(
    what: str, listed: Iterable[Any], wanted: Iterable[TensorSpec], *, ours: bool, batched: bool
) -> str:
    known = {tensor.name: tensor for tensor in listed}
    for tensor in wanted:
        found = known.get(tensor.name)
        if found is None:
            if ours:
                return f"it has no {what} {tensor.name!r}"
            continue
        dtype = model_config_pb2.DataType.Name(found.data_type).removeprefix("TYPE_")
        dtype = "BYTES" if dtype == "STRING" else dtype
        if dtype != tensor.dtype:
            return f"its {what} {tensor.name!r} is {dtype}, not {tensor.dtype}"
        dims = tuple(found.dims) if batched else tuple(found.dims)[1:]
        if not _same(dims, tensor.shape):
            return f"its {what} {tensor.name!r} has shape {list(dims)}, not {list(tensor.shape)}"
    return ""


def _same(dims: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(dims) == len(shape) and all(
        -1 in (one, other) or one == other for one, other in zip(dims, shape, strict=True)
    )

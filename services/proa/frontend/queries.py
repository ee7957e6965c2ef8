"""A client's request, checked against the spec: everything wrong with it is found here."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa import wire
from proa.errors import BadAnswer, InvalidRequest, UnknownModel
from proa.spec import CodedModel, TensorSpec
from proa.spec.types import POLICIES

Tensors = Mapping[str, NDArray[Any]]
VERSIONS = ("", "1")


@dataclass(frozen=True)
class CheckedQuery:
    """A request that fits the model. `inputs`: arrays [b, ...] by name; `wanted`: the outputs the
    client asked for, in its order; `timeout_s`: the client's own limit, if it gave one;
    `reconstruct`: answer it from the code, as if its worker had died; `tenant`: whose it is."""

    id: str
    inputs: Tensors
    wanted: tuple[str, ...]
    batch: int
    exact: bool
    policy: str | None
    timeout_s: float | None
    size: int
    reconstruct: bool = False
    tenant: str = ""

    def key(self, model: str) -> Hashable:
        """Only queries of equal keys are coded together (DESIGN 5)."""
        tensors = tuple((name, a.dtype.str, a.shape) for name, a in sorted(self.inputs.items()))
        return (model, self.tenant, tensors)


def check_request(request: Any, spec: CodedModel, tenant: str = "") -> CheckedQuery:
    """Check a ModelInferRequest of `tenant`. Errors: InvalidRequest, UnknownModel; each names field
    and limit."""
    if request.model_version not in VERSIONS:
        raise UnknownModel(f"model {spec.name!r} has version 1, not {request.model_version[:32]!r}")
    inputs = wire.read_request(request)
    batch = _check_inputs(inputs, spec)
    parameters = wire.get_parameters(request.parameters)
    exact = _bool(parameters, "proa.exact")
    return CheckedQuery(
        id=request.id,
        inputs=inputs,
        wanted=_wanted(request, spec),
        batch=batch,
        exact=exact,
        policy=_policy(parameters),
        timeout_s=_timeout_s(parameters),
        size=sum(a.nbytes for a in inputs.values()),
        reconstruct=_reconstruct(parameters, spec, exact=exact),
        tenant=tenant,
    )


def _check_inputs(inputs: Tensors, spec: CodedModel) -> int:
    known = {tensor.name for tensor in spec.model.inputs}
    for name in inputs:
        if name not in known:
            raise InvalidRequest(f"input {name!r} is unknown; the model has {', '.join(known)}")
    batch: int | None = None
    for tensor in spec.model.inputs:
        array = inputs.get(tensor.name)
        if array is None:
            raise InvalidRequest(f"input {tensor.name!r} is missing")
        check_tensor("input", tensor, array)
        _check_numbers(tensor, array)
        if batch not in (None, array.shape[0]):
            raise InvalidRequest(
                f"input {tensor.name!r} has batch {array.shape[0]}; the others have {batch}"
            )
        batch = array.shape[0]
    if batch is None or not 1 <= batch <= spec.model.max_batch:
        raise InvalidRequest(f"batch is {batch}; the limits are 1 to {spec.model.max_batch}")
    return batch


def check_tensor(what: str, tensor: TensorSpec, array: NDArray[Any]) -> None:
    """Datatype and shape [b, ...] are those of the spec. Errors: InvalidRequest."""
    datatype = wire.datatype_of(array)
    if datatype != tensor.dtype:
        raise InvalidRequest(f"{what} {tensor.name!r}: datatype is {datatype}, not {tensor.dtype}")
    fits = len(array.shape) == len(tensor.shape) + 1 and all(
        want in (-1, have) for want, have in zip(tensor.shape, array.shape[1:], strict=False)
    )
    if not fits:
        expected = ", ".join(["batch", *map(str, tensor.shape)])
        raise InvalidRequest(
            f"{what} {tensor.name!r}: shape is {list(array.shape)}, not [{expected}]"
        )


def _check_numbers(tensor: TensorSpec, array: NDArray[Any]) -> None:
    """NaN in one query would poison the reconstruction of its neighbours (parm facts F12)."""
    if _not_finite(array):
        raise InvalidRequest(f"input {tensor.name!r} holds NaN or Inf")


def _not_finite(array: NDArray[Any]) -> bool:
    floating = array.dtype.kind == "f" or array.dtype == wire.DTYPES["BF16"]
    return floating and not np.isfinite(array).all()


def _wanted(request: Any, spec: CodedModel) -> tuple[str, ...]:
    known = [tensor.name for tensor in spec.model.outputs]
    wanted = tuple(output.name for output in request.outputs)
    for name in wanted:
        if name not in known:
            raise InvalidRequest(f"output {name!r} is unknown; the model has {', '.join(known)}")
    return wanted or tuple(known)


def _bool(parameters: Mapping[str, wire.Parameter], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name!r} must be a bool, not {value!r}")
    return value


def _reconstruct(
    parameters: Mapping[str, wire.Parameter], spec: CodedModel, *, exact: bool
) -> bool:
    """Whether the client asks for a drill. It is told where that can never be had."""
    name = "proa.reconstruct"
    if not _bool(parameters, name):
        return False
    if exact:
        raise InvalidRequest(f"parameters {name!r} and 'proa.exact' exclude each other")
    if not (spec.has_parity and spec.codable):
        raise InvalidRequest(f"parameter {name!r}: model {spec.name!r} has no parity to decode")
    if spec.redundancy.mode != "enforce":
        raise InvalidRequest(
            f"parameter {name!r}: model {spec.name!r} has mode {spec.redundancy.mode!r}, which"
            " answers nothing from the code"
        )
    return True


def _policy(parameters: Mapping[str, wire.Parameter]) -> str | None:
    value = parameters.get("proa.policy")
    if value is not None and value not in POLICIES:
        raise InvalidRequest(
            f"parameter 'proa.policy' is {str(value)[:32]!r}, not one of {', '.join(POLICIES)}"
        )
    return value if isinstance(value, str) else None


def _timeout_s(parameters: Mapping[str, wire.Parameter]) -> float | None:
    value = parameters.get("timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 3_600_000_000:
        raise InvalidRequest("parameter 'timeout' must be 1 to 3600000000 microseconds")
    return value / 1e6


def as_declared(outputs: Tensors, spec: CodedModel, batch: int) -> Tensors:
    """A reconstruction (fp32) in the dtypes that the model declares, integers rounded and kept in
    their limits. Errors: BadAnswer."""
    found: dict[str, NDArray[Any]] = {}
    for tensor in spec.model.outputs:
        array = outputs.get(tensor.name)
        if array is None or array.shape != (batch, *tensor.shape):
            raise BadAnswer(f"reconstructed output {tensor.name!r} is missing or of another shape")
        narrowed = _narrowed(array, wire.DTYPES[tensor.dtype])
        if _not_finite(narrowed):
            raise BadAnswer(f"reconstructed output {tensor.name!r} holds NaN or Inf")
        found[tensor.name] = narrowed
    return found


def _narrowed(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind not in "iu":
        return array.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    # The largest 64-bit integers have no float of their own: the next one up would overflow.
    high = np.nextafter(float(limits.max) + 1.0, 0.0)
    return np.clip(np.rint(array.astype(np.float64)), limits.min, high).astype(dtype)


def check_answer(response: Any, spec: CodedModel, batch: int, worker: str) -> Tensors:
    """The outputs of a worker's ModelInferResponse; Triton itself checks neither names nor shapes.

    Errors: BadAnswer, naming worker and output.
    """
    found = wire.read_response(response)
    for tensor in spec.model.outputs:
        array = found.get(tensor.name)
        if array is None:
            raise BadAnswer(f"worker {worker}: output {tensor.name!r} is missing")
        try:
            check_tensor("output", tensor, array)
        except InvalidRequest as exc:
            raise BadAnswer(f"worker {worker}: {exc}") from exc
        if array.shape[0] != batch:
            raise BadAnswer(
                f"worker {worker}: output {tensor.name!r} has batch {array.shape[0]}, not {batch}"
            )
        if spec.codable and _not_finite(array):
            raise BadAnswer(f"worker {worker}: output {tensor.name!r} holds NaN or Inf")
    return found

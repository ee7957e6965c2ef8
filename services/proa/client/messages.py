"""Protocol messages from calls, and values from replies. No I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from proa import errors, wire
from proa.client.values import Answer, Metadata, ModelInfo, TensorInfo
from proa.errors import BadAnswer, InvalidRequest, Overloaded, ProaError

Array = NDArray[Any]
Inputs = Mapping[str, Array] | Array

# Without a deadline of the caller's the server's default holds; no call waits longer than this.
WAIT_S_MAX = 60.0
DEADLINE_S_MAX = 3600.0
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_ERRORS: dict[str, type[ProaError]] = {
    error.status: error
    for error in (
        errors.InvalidRequest,
        errors.UnknownModel,
        errors.NotSupported,
        errors.Unauthenticated,
        errors.PermissionDenied,
        errors.DeadlinePassed,
        errors.RequestCancelled,
        errors.Unavailable,
        errors.ProgramRefused,
        errors.TooManyErasures,
    )
}


class CallOptions(TypedDict, total=False):
    """What a call may say beside model and inputs; the client's defaults hold for the rest.

    exact: refuse reconstructed answers. reconstruct: a drill; be answered from the code, as if the
    worker had died, or exactly if that cannot be (the answer's `source` says which). policy: a
    redundancy policy instead of the spec's. deadline_s: seconds for the whole call (None: the
    server's default, never more than 60). outputs: names of the outputs wanted, all if empty.
    version: of the model, the latest if empty.
    """

    exact: bool
    reconstruct: bool
    policy: str | None
    deadline_s: float | None
    outputs: Sequence[str]
    version: str


@dataclass(frozen=True)
class Options:
    """CallOptions with all values. Errors: InvalidRequest for a deadline out of bounds."""

    exact: bool = False
    reconstruct: bool = False
    policy: str | None = None
    deadline_s: float | None = None
    outputs: Sequence[str] = ()
    version: str = ""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not 0 < self.deadline_s <= DEADLINE_S_MAX:
            raise InvalidRequest(
                f"deadline_s {self.deadline_s} must be above 0 and at most {DEADLINE_S_MAX:g}"
            )

    def parameters(self) -> dict[str, wire.Parameter]:
        found: dict[str, wire.Parameter] = {}
        if self.exact:
            found["proa.exact"] = True
        if self.reconstruct:
            found["proa.reconstruct"] = True
        if self.policy is not None:
            found["proa.policy"] = self.policy
        return found


class Call:
    """One call that began now: writes its messages and knows how much time is left."""

    def __init__(self, model: str, options: Options) -> None:
        self.model = model
        self.options = options
        wait_s = WAIT_S_MAX if options.deadline_s is None else options.deadline_s
        self._end_s = time.monotonic() + wait_s

    def remaining_s(self) -> float:
        return max(self._end_s - time.monotonic(), 0.0)

    def write(self, inputs: Inputs, input_name: str | None, request_id: str = "") -> Any:
        """A ModelInferRequest. input_name: of an array given without one.

        Errors: InvalidRequest (no numpy array, a dtype that the protocol lacks).
        """
        if not isinstance(inputs, Mapping):
            assert input_name is not None, "the caller asks for the name of an unnamed input"
            inputs = {input_name: inputs}
        for name, array in inputs.items():
            _check_array(name, array)
        return wire.write_request(
            self.model,
            inputs,
            outputs=self.options.outputs,
            request_id=request_id,
            version=self.options.version,
            parameters=self.options.parameters(),
        )

    def stamp(self, request: Any) -> Any:
        """Tell the server how long the answer is wanted, as Triton reads it: in microseconds.

        Only if the caller said so: the limit that guards against a silent server is ours.
        """
        if self.options.deadline_s is not None:
            timeout_us = max(math.ceil(self.remaining_s() * 1e6), 1)
            request.parameters["timeout"].int64_param = timeout_us
        return request


def unnamed(queries: Sequence[Inputs]) -> bool:
    """Whether some input comes without a name. Errors: InvalidRequest for what is no array."""
    for query in queries:
        if not isinstance(query, (Mapping, np.ndarray)):
            raise InvalidRequest(
                f"inputs are a numpy array or a mapping from name to array, not"
                f" {type(query).__name__}"
            )
    return not all(isinstance(query, Mapping) for query in queries)


def write_ready(model: str | None) -> tuple[str, Any]:
    """The method and its request that ask whether the server, or a model, is ready."""
    if model is None:
        return "ServerReady", service_pb2.ServerReadyRequest()
    return "ModelReady", service_pb2.ModelReadyRequest(name=model)


def write_metadata(call: Call) -> Any:
    """A ModelMetadataRequest."""
    return service_pb2.ModelMetadataRequest(name=call.model, version=call.options.version)


def read_answer(response: Any) -> Answer:
    """The answer in a ModelInferResponse. Errors: BadAnswer."""
    parameters = _parameters(response)
    group, worker = parameters.get("proa.group"), parameters.get("proa.worker")
    abft = parameters.get("proa.abft")
    return Answer(
        outputs=wire.read_response(response),
        source=str(parameters.get("proa.source", "")),
        group=None if group is None else _integer("proa.group", group),
        worker=None if worker is None else str(worker),
        model=response.model_name,
        version=response.model_version,
        abft=None if abft is None else str(abft),
    )


def read_stream_error(reply: Any) -> ProaError:
    """The error of one query in a ModelStreamInferResponse.

    proa's frontend names the status in the parameter `proa.status`, and for RESOURCE_EXHAUSTED the
    delay in `proa.retry_after_ms`; another server's stream errors have no status: BadAnswer.
    """
    parameters = _parameters(reply.infer_response)
    status = str(parameters.get("proa.status", ""))
    if status == Overloaded.status:
        delay_ms = parameters.get("proa.retry_after_ms", 100)
        delay_s = _integer("proa.retry_after_ms", delay_ms) / 1000
        return Overloaded(reply.error_message, retry_after_s=delay_s)
    return _ERRORS.get(status, BadAnswer)(reply.error_message)


def read_models(response: Any) -> list[ModelInfo]:
    """The models in a RepositoryIndexResponse."""
    return [ModelInfo(m.name, m.version, m.state, m.reason) for m in response.models]


def read_metadata(response: Any) -> Metadata:
    """What a ModelMetadataResponse says."""

    def tensors(declared: Any) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(t.name, t.datatype, tuple(t.shape)) for t in declared)

    return Metadata(
        response.name,
        tuple(response.versions),
        tensors(response.inputs),
        tensors(response.outputs),
    )


def only_input(metadata: Metadata) -> str:
    """The name of the model's one input. Errors: InvalidRequest when it has several."""
    names = [tensor.name for tensor in metadata.inputs]
    if len(names) != 1:
        raise InvalidRequest(
            f"model {metadata.name!r} has inputs {names}: give a mapping from name to array"
        )
    return names[0]


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise InvalidRequest(f"input {name!r} is a {type(value).__name__}, not a numpy array")


def _parameters(response: Any) -> dict[str, wire.Parameter]:
    try:
        return wire.get_parameters(response.parameters)
    except InvalidRequest as exc:
        raise BadAnswer(str(exc)) from exc


def _integer(name: str, value: wire.Parameter) -> int:
    if isinstance(value, (bool, float)) or not str(value).isdigit():
        raise BadAnswer(f"parameter {name!r} is {value!r}, not a count")
    return int(value)

"""Calls to the workers of one model, over one connection each."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from proa import wire
from proa.dispatch.events import DEPLOYED, PARITY
from proa.errors import BadAnswer, ProaError
from proa.frontend.addresses import WorkerAddress
from proa.frontend.queries import Tensors, check_answer
from proa.parity import ParityRunner
from proa.rpc import Channels, peer_errors
from proa.spec import CodedModel, TensorSpec

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"
PACKAGE, PROGRAMS = "proa.package", "proa.programs"


def mapped(error: Exception) -> ProaError:
    """`error` if it is ours. For the border to the workers: whatever one of them made happen here
    is logged and counts as a bad answer of its."""
    if isinstance(error, ProaError):
        return error
    log.error("unexpected error", exc_info=error)
    return BadAnswer("internal error")


def worker_request(spec: CodedModel, inputs: Tensors) -> bytes:
    """The ModelInferRequest for the deployed program, ready to be sent to any worker."""
    program = DEPLOYED if spec.model.program is not None else None
    request = wire.write_request(
        model_at_worker(spec),
        inputs,
        outputs=[tensor.name for tensor in spec.model.outputs],
        program=program,
    )
    data: bytes = request.SerializeToString()
    return data


def model_at_worker(spec: CodedModel) -> str:
    """What the model is called at its workers."""
    endpoint = spec.model.endpoint
    return endpoint.partition("/")[2] if endpoint else spec.name


class WorkerCalls:
    """What a frontend asks of workers. Errors: the worker's own, mapped; BadAnswer."""

    def __init__(self, spec: CodedModel, channels: Channels, runner: ParityRunner) -> None:
        self._spec = spec
        self._channels = channels
        self._runner = runner

    async def infer(
        self, worker: WorkerAddress, request: bytes, batch: int, timeout_s: float
    ) -> Tensors:
        """One computation of the deployed program; the checked outputs."""
        call = self._channels(worker.address).unary_unary(
            _SERVICE + "ModelInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        async with peer_errors(f"worker {worker.name}"):
            response = await call(request, timeout=timeout_s)
        _check_read(response, worker)
        return check_answer(response, self._spec, batch, worker.name)

    async def hosted(self, worker: WorkerAddress, timeout_s: float) -> tuple[str, frozenset[str]]:
        """The package hash and the programs that the worker says it hosts.

        A model that is no package of ours (repository, endpoint) has hash "" and `deployed`.
        """
        call = self._channels(worker.address).unary_unary(
            _SERVICE + "ModelConfig",
            request_serializer=service_pb2.ModelConfigRequest.SerializeToString,
            response_deserializer=service_pb2.ModelConfigResponse.FromString,
        )
        request = service_pb2.ModelConfigRequest(name=model_at_worker(self._spec))
        async with peer_errors(f"worker {worker.name}"):
            response = await call(request, timeout=timeout_s)
        _check_read(response, worker)
        parameters = response.config.parameters
        if PACKAGE not in parameters:
            return "", frozenset((DEPLOYED,))
        programs = parameters[PROGRAMS].string_value.split(",")
        return parameters[PACKAGE].string_value, frozenset(programs)

    async def canary(self, worker: WorkerAddress, roles: frozenset[str], timeout_s: float) -> None:
        """A query of zeros through the programs of these roles: the deployed one, each parity
        row."""
        zeros = {t.name: _zeros(t) for t in self._spec.model.inputs}
        if DEPLOYED in roles:
            await self.infer(worker, worker_request(self._spec, zeros), 1, timeout_s)
        if PARITY not in roles:
            return
        query = {name: array.astype(np.float32) for name, array in zeros.items()}
        outputs = [tensor.name for tensor in self._spec.model.outputs]
        for row in range(self._spec.redundancy.r):
            found = await self._runner.run(
                model=self._spec.name,
                row=row,
                query=query,
                outputs=outputs,
                worker=worker.address,
                timeout_s=timeout_s,
            )
            for tensor in self._spec.model.outputs:
                if found[tensor.name].shape != (1, *tensor.shape):
                    raise BadAnswer(
                        f"worker {worker.name}: parity output {tensor.name!r} has shape"
                        f" {list(found[tensor.name].shape)}, not {[1, *tensor.shape]}"
                    )

    def roles(self, worker: WorkerAddress, programs: frozenset[str]) -> frozenset[str]:
        """What the worker may do: what it is configured for and has the programs of."""
        red = self._spec.redundancy
        rows = {f"{PARITY}.{row}" for row in range(red.r)}
        able = {DEPLOYED} if DEPLOYED in programs else set()
        if self._spec.has_parity and rows <= programs:
            able.add(PARITY)
        return worker.roles & able


def _check_read(response: object, worker: WorkerAddress) -> None:
    """grpc gives None where it cannot parse what came. Errors: BadAnswer."""
    if response is None:
        raise BadAnswer(f"worker {worker.name}: its answer is not what the protocol says")


def _zeros(tensor: TensorSpec) -> Any:
    """A batch of one; a variable dimension is 1 long."""
    shape = (1, *(max(1, n) for n in tensor.shape))
    if tensor.dtype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, wire.DTYPES[tensor.dtype])

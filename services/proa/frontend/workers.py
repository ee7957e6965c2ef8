"""Calls to the workers of one model, over one connection each."""

from __future__ import annotations

import logging
import time
from typing import Any, NamedTuple

import numpy as np
from tritonclient.grpc import service_pb2

from proa import wire
from proa.dispatch.events import DEPLOYED, PARITY
from proa.errors import BadAnswer, ProaError, Unavailable
from proa.frontend import load, verdicts
from proa.frontend.addresses import WorkerAddress
from proa.frontend.hosted import Hosted, misfit, read_hosted
from proa.frontend.integrity import FAILED, Integrity
from proa.frontend.load import LoadMeter
from proa.frontend.queries import Tensors, check_answer
from proa.frontend.verdicts import Verdict
from proa.parity import ParityRunner
from proa.rpc import Channels, peer_errors
from proa.runtime.faults import FaultTable
from proa.spec import CodedModel, TensorSpec
from proa.spec.reports import CORRUPTION
from proa.telemetry import TraceContext, to_metadata

log = logging.getLogger(__name__)

_SERVICE = "/inference.GRPCInferenceService/"


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


class Prediction(NamedTuple):
    """What a worker answered. `verdict`: None from one that does not check itself."""

    outputs: Tensors
    verdict: Verdict | None = None


class WorkerCalls:
    """What a frontend asks of workers. Errors: the worker's own, mapped; BadAnswer."""

    def __init__(
        self,
        spec: CodedModel,
        channels: Channels,
        runner: ParityRunner,
        faults: FaultTable | None = None,
        integrity: Integrity | None = None,
    ) -> None:
        self._spec = spec
        self._faults = faults
        self._channels = channels
        self._runner = runner
        self._integrity = integrity
        self._meters: dict[str, LoadMeter] = {}
        self._asks: dict[str, bytes] = {}

    def meter(self, worker: str) -> LoadMeter:
        """What others use of a worker's time."""
        return self._meters.setdefault(worker, LoadMeter())

    def forget(self, worker: str) -> None:
        """The worker is gone for good."""
        self._meters.pop(worker, None)
        self._asks.pop(worker, None)
        if self._integrity is not None:
            self._integrity.forget(worker)

    async def infer(
        self,
        worker: WorkerAddress,
        request: bytes,
        batch: int,
        timeout_s: float,
        trace: TraceContext | None = None,
    ) -> Prediction:
        """One computation of the deployed program; the checked outputs. `trace`: the span that the
        worker's belong to. Errors: Unavailable also where the worker knows its answer is wrong."""
        call = self._channels(worker.address).unary_unary(
            _SERVICE + "ModelInfer",
            request_serializer=None,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        if self._faults is not None:
            await self._faults.reach(worker.name, timeout_s)
        asks = self._asks.get(worker.name, b"")
        meter, sent_at = self.meter(worker.name), time.monotonic()
        with meter.own():
            try:
                async with peer_errors(f"worker {worker.name}"):
                    response = await call(
                        request + asks, timeout=timeout_s, metadata=to_metadata(trace)
                    )
            except Unavailable as exc:
                self.note_refusal(worker, exc)
                raise
            _check_read(response, worker)
            found = dict(check_answer(response, self._spec, batch, worker.name))
            if not asks:
                return Prediction(found)
            report = load.read_report(found.pop(load.OUTPUT, None), time.monotonic())
            if report is not None:
                meter.take(report, sent_at)
        verdict = verdicts.read_verdict(found.pop(verdicts.OUTPUT, None))
        if verdict is not None:
            self._judge(worker, verdict)
        return Prediction(found, verdict)

    def note_refusal(self, worker: WorkerAddress, error: ProaError) -> None:
        """If `error` says so, `worker` knew its answer to be wrong: that counts as a fault."""
        if self._integrity is not None and CORRUPTION in str(error):
            self._integrity.fault(worker.name, FAILED)

    def _judge(self, worker: WorkerAddress, verdict: Verdict) -> None:
        """Errors: Unavailable for an answer that is known to be wrong, unless the spec wants it."""
        if self._integrity is not None:
            self._integrity.take(worker.name, verdict)
        if verdict.status == "failed" and self._spec.protection.on_fault == "failover":
            raise Unavailable(f"worker {worker.name}: {verdict.text}")

    async def hosted(self, worker: WorkerAddress, timeout_s: float) -> Hosted:
        """What the worker says it hosts. Errors: Unavailable where queries would not fit it."""
        call = self._channels(worker.address).unary_unary(
            _SERVICE + "ModelConfig",
            request_serializer=service_pb2.ModelConfigRequest.SerializeToString,
            response_deserializer=service_pb2.ModelConfigResponse.FromString,
        )
        request = service_pb2.ModelConfigRequest(name=model_at_worker(self._spec))
        async with peer_errors(f"worker {worker.name}"):
            response = await call(request, timeout=timeout_s)
        _check_read(response, worker)
        self._note_reports(worker, response.config)
        reason = misfit(response.config, self._spec)
        if reason:
            raise Unavailable(f"worker {worker.name} hosts another model: {reason}")
        return read_hosted(response.config)

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
            with self.meter(worker.name).own():
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

    def _note_reports(self, worker: WorkerAddress, config: Any) -> None:
        """Only a worker whose model has these outputs is asked for its load, and its verdicts."""
        listed = {output.name for output in config.output}
        judging = verdicts.OUTPUT in listed
        self._asks[worker.name] = load.ASK * (load.OUTPUT in listed) + verdicts.ASK * judging
        if judging and self._integrity is not None:
            self._integrity.expect(worker.name)

    def roles(self, worker: WorkerAddress, hosted: Hosted) -> frozenset[str]:
        """What the worker may do: what it is configured for and has the programs of."""
        return worker.roles & hosted.roles(self._spec)

    def disconnect(self, worker: WorkerAddress) -> None:
        """Nobody is at this address any more."""
        self._channels.forget(worker.address)


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

"""proa.api.v1.Encoder: checks a request, encodes its group, runs the parity query."""

from __future__ import annotations

import time

import numpy as np
from prometheus_client import CollectorRegistry

from proa import wire
from proa.api.v1 import encoder_pb2, encoder_pb2_grpc
from proa.codes import Code, make_code
from proa.errors import BadAnswer, InvalidRequest
from proa.parity import ParityRunner, Tensors, bytes_of, encode_members, off_loop
from proa.rpc import Context, check_address, servicer_errors
from proa.runtime.calls import Calls, step_seconds
from proa.runtime.tracing import step
from proa.telemetry import Kind, Tracing, current
from proa.telemetry.spans import Value

NAME = encoder_pb2.DESCRIPTOR.services_by_name["Encoder"].full_name


class EncoderService(encoder_pb2_grpc.EncoderServicer):
    """At most `calls_max` calls at once, each bounded by `deadline_s_max` seconds."""

    def __init__(
        self,
        runner: ParityRunner,
        registry: CollectorRegistry,
        *,
        calls_max: int,
        deadline_s_max: float,
        tracing: Tracing | None = None,
    ) -> None:
        self._runner = runner
        self._tracing = tracing
        self._deadline_s_max = deadline_s_max
        self._calls = Calls(registry, "encoder", calls_max)
        self._encode = step_seconds(registry, "encoder", "encode", "Encoding a group")
        self._infer = step_seconds(registry, "encoder", "infer", "Parity query on the worker")

    @servicer_errors
    async def InferParity(
        self, request: encoder_pb2.InferParityRequest, context: Context
    ) -> encoder_pb2.InferParityResponse:
        with self._calls:
            return await self._answer(request, self._end_s(context))

    async def _answer(
        self, request: encoder_pb2.InferParityRequest, end_s: float
    ) -> encoder_pb2.InferParityResponse:
        start_s = time.monotonic()
        code, members = read_group(request)
        about: dict[str, Value] = {"proa.k": code.k, "proa.row": request.row}
        with step(self._tracing, "proa.encode", kind=Kind.INTERNAL, **about):
            query = await off_loop(bytes_of(members), encode_members, code, members, request.row)
        encoded_s = time.monotonic()
        self._encode.observe(encoded_s - start_s)
        with step(self._tracing, "proa.infer", kind=Kind.CLIENT, **_of_worker(request.worker)):
            outputs = await self._runner.run(
                model=request.model,
                row=request.row,
                query=query,
                outputs=request.outputs,
                worker=request.worker,
                timeout_s=max(0.0, end_s - encoded_s),
                trace=current.get(),
            )
        infer_s = time.monotonic() - encoded_s
        self._infer.observe(infer_s)
        return encoder_pb2.InferParityResponse(
            outputs=[wire.to_tensor(name, array) for name, array in outputs.items()],
            encode_seconds=encoded_s - start_s,
            infer_seconds=infer_s,
        )

    def _end_s(self, context: Context) -> float:
        left_s = context.time_remaining()
        if left_s is None or left_s > self._deadline_s_max:
            left_s = self._deadline_s_max
        return time.monotonic() + left_s


def _of_worker(address: str) -> dict[str, Value]:
    host, _, port = address.rpartition(":")
    return {"rpc.system.name": "grpc", "server.address": host, "server.port": int(port)}


def read_group(request: encoder_pb2.InferParityRequest) -> tuple[Code, list[Tensors]]:
    """The code and the members of a request, in position order. Errors: InvalidRequest, WrongGroup.

    Every count is checked before a byte of a tensor is read.
    """
    check_address(request.worker)
    if not 1 <= len(request.model.encode()) <= wire.NAME_BYTES_MAX:
        raise InvalidRequest(f"model: a name has 1 to {wire.NAME_BYTES_MAX} bytes")
    code = make_code(request.code.coder, request.code.k, request.code.r)
    if len(request.members) != code.k:
        raise InvalidRequest(f"{len(request.members)} members for a group of {code.k}")
    if request.row >= code.r:
        raise InvalidRequest(f"row {request.row}: the code has rows 0 to {code.r - 1}")
    names = set(request.outputs)
    if not 1 <= len(names) == len(request.outputs) <= wire.TENSORS_MAX or "" in names:
        raise InvalidRequest(f"outputs: 1 to {wire.TENSORS_MAX} names, each once, none empty")
    members: list[Tensors] = [
        wire.from_tensors(member.inputs, f"member {i}") for i, member in enumerate(request.members)
    ]
    return code, members


async def self_check() -> None:
    """Encode a group whose parity query is known. Errors: BadAnswer."""
    code = make_code("sum", 2, 2)
    members = [{"x": np.array([[1.0, 2.0]], np.float32)}, {"x": np.array([[3.0, 5.0]], np.float32)}]
    for row, expected in enumerate(([[4.0, 7.0]], [[-2.0, -3.0]])):
        found = encode_members(code, members, row)
        if found["x"].tolist() != expected:
            raise BadAnswer(f"row {row} of a known group encodes to {found['x'].tolist()}")

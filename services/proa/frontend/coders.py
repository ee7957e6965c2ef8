"""Encoding and decoding: by encoder and decoder processes, or inline (DESIGN 1, placement)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc.aio

from proa import wire
from proa.api.v1 import decoder_pb2, encoder_pb2, tensor_pb2
from proa.codes import Code
from proa.errors import DeadlinePassed, Overloaded, ProaError, Unavailable
from proa.frontend.addresses import WorkerAddress
from proa.frontend.queries import Tensors
from proa.frontend.stories import QUIET, Step
from proa.parity import ParityRunner, bytes_of, decode_outputs, off_loop
from proa.rpc import DECODER, ENCODER, Channels, peer_errors
from proa.spec import CodedModel
from proa.telemetry import TraceContext, to_metadata

log = logging.getLogger(__name__)

Response = TypeVar("Response")

# A peer that failed so often in a row is left alone for so long, and again if it fails once more.
# Not after one failure: behind an encoder it may have been the worker's.
FAILURES_MAX = 3
REST_S = 1.0
DECODE_TIMEOUT_S = 0.1
INFER_PARITY, DECODE = "proa.api.v1.Encoder/InferParity", "proa.api.v1.Decoder/Decode"


class Peers:
    """Addresses of equal peers, used in turn; one that keeps failing rests for a while."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._resting_until: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._now = now

    def update(self, addresses: Sequence[str]) -> list[str]:
        """These are the peers from now on. Returns those that are so no longer."""
        gone = [address for address in self._resting_until if address not in addresses]
        for address in gone:
            del self._resting_until[address], self._failures[address]
        for address in addresses:
            self._resting_until.setdefault(address, 0.0)
            self._failures.setdefault(address, 0)
        return gone

    def __bool__(self) -> bool:
        return bool(self._resting_until)

    def pick(self) -> str | None:
        """The peer used longest ago that does not rest; None if all rest."""
        for address, until in self._resting_until.items():
            if until <= self._now():
                self._resting_until[address] = self._resting_until.pop(address)
                return address
        return None

    def answered(self, address: str) -> None:
        """The peer works."""
        if address in self._failures:
            self._failures[address] = 0

    def failed(self, address: str) -> None:
        """It did not answer."""
        if address not in self._failures:
            return
        self._failures[address] += 1
        if self._failures[address] >= FAILURES_MAX:
            self._resting_until[address] = self._now() + REST_S


@dataclass(frozen=True)
class Group:
    """What coders need to know of a coding group."""

    id: int
    package: str
    members: Sequence[int]


class Coders:
    """Runs parity queries and reconstructs predictions for one model."""

    def __init__(
        self,
        spec: CodedModel,
        code: Code,
        runner: ParityRunner,
        channels: Channels,
        *,
        encoders: Peers,
        decoders: Peers,
        inline_bytes_max: int,
        on_fallback: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._code = code
        self._runner = runner
        self._channels = channels
        self._encoders = encoders
        self._decoders = decoders
        self._inline_bytes_max = inline_bytes_max
        self._on_fallback = on_fallback
        red = spec.redundancy
        self._code_message = tensor_pb2.Code(coder=red.coder, k=red.k, r=red.r)

    def encodes_inline(self, members: Sequence[Tensors]) -> bool:
        """Whether this group's parity query is encoded in this process."""
        return self._inline(bool(self._encoders), bytes_of(members))

    def _inline(self, has_peers: bool, size: int) -> bool:
        placement = self._spec.redundancy.placement
        if placement == "auto":
            return not has_peers or size <= self._inline_bytes_max
        return placement == "inline" or not has_peers

    async def infer_parity(
        self,
        group: Group,
        row: int,
        members: Sequence[Tensors],
        worker: WorkerAddress,
        timeout_s: float,
        step: Step | None = None,
    ) -> Tensors:
        """The parity prediction of `row`, computed on `worker`. `step`: notes the call, if there is
        one. Errors: any ProaError."""
        outputs = [tensor.name for tensor in self._spec.model.outputs]
        if self.encodes_inline(members):
            return await self._runner.infer_parity(
                model=self._spec.name,
                code=self._code,
                row=row,
                members=members,
                outputs=outputs,
                worker=worker.address,
                timeout_s=timeout_s,
                trace=step.sent if step is not None else None,
            )
        encoder = self._encoders.pick()
        if encoder is None:
            raise Unavailable("no encoder answers")
        request = encoder_pb2.InferParityRequest(
            model=self._spec.name,
            package=group.package,
            group=group.id,
            code=self._code_message,
            row=row,
            members=[
                encoder_pb2.Query(inputs=[wire.to_tensor(n, a) for n, a in member.items()])
                for member in members
            ],
            outputs=outputs,
            worker=worker.address,
        )
        call = self._channels(encoder, ENCODER).unary_unary(
            "/" + INFER_PARITY,
            request_serializer=encoder_pb2.InferParityRequest.SerializeToString,
            response_deserializer=encoder_pb2.InferParityResponse.FromString,
        )
        note = QUIET if step is None else step.call(INFER_PARITY, encoder)
        with note as trace:
            response = await self._call(
                call, request, self._encoders, encoder, "encoder", timeout_s, trace
            )
        return dict(wire.from_tensor(tensor) for tensor in response.outputs)

    async def decode(
        self,
        group: Group,
        available: Mapping[int, Tensors],
        parity: Mapping[int, Tensors],
        missing: Sequence[int],
        step: Step | None = None,
    ) -> dict[int, Tensors]:
        """The predictions of the `missing` positions, fp32. A decoder that does not answer is
        stood in for inline (DESIGN 2), and counted. `step`: notes the call, if there is one.
        Errors: CodingError."""
        size = bytes_of([*available.values(), *parity.values()])
        decoder = self._decoders.pick()
        if self._inline(bool(self._decoders), size):
            return await self.decode_inline(available, parity, missing)
        if decoder is not None:
            try:
                return await self._decode_by(decoder, group, available, parity, missing, step)
            except ProaError as exc:
                log.warning("decoder failed, decoding inline: %s", exc)
        self._on_fallback("decoder")
        return await self.decode_inline(available, parity, missing)

    async def decode_inline(
        self,
        available: Mapping[int, Tensors],
        parity: Mapping[int, Tensors],
        missing: Sequence[int],
    ) -> dict[int, Tensors]:
        """The same in this process."""
        size = bytes_of([*available.values(), *parity.values()])
        found = await off_loop(size, decode_outputs, self._code, available, parity, missing)
        return dict(found)

    async def _decode_by(
        self,
        decoder: str,
        group: Group,
        available: Mapping[int, Tensors],
        parity: Mapping[int, Tensors],
        missing: Sequence[int],
        step: Step | None,
    ) -> dict[int, Tensors]:
        request = decoder_pb2.DecodeRequest(
            model=self._spec.name,
            package=group.package,
            group=group.id,
            code=self._code_message,
            available=[_prediction(i, one) for i, one in available.items()],
            parity=[_prediction(j, one) for j, one in parity.items()],
            missing=missing,
        )
        call = self._channels(decoder, DECODER).unary_unary(
            "/" + DECODE,
            request_serializer=decoder_pb2.DecodeRequest.SerializeToString,
            response_deserializer=decoder_pb2.DecodeResponse.FromString,
        )
        note = QUIET if step is None else step.call(DECODE, decoder)
        with note as trace:
            response = await self._call(
                call, request, self._decoders, decoder, "decoder", DECODE_TIMEOUT_S, trace
            )
        found = {
            one.position: dict(wire.from_tensor(tensor) for tensor in one.outputs)
            for one in response.reconstructed
        }
        if set(found) != set(missing):
            raise Unavailable(f"decoder {decoder}: reconstructed {sorted(found)}, not {missing}")
        return dict(found)

    async def _call(
        self,
        call: grpc.aio.UnaryUnaryMultiCallable[object, Response],
        request: object,
        peers: Peers,
        address: str,
        what: str,
        timeout_s: float,
        trace: TraceContext | None,
    ) -> Response:
        try:
            async with peer_errors(f"{what} {address}"):
                response = await call(request, timeout=timeout_s, metadata=to_metadata(trace))
        except (Unavailable, DeadlinePassed, Overloaded):
            peers.failed(address)
            raise
        peers.answered(address)
        return response


def _prediction(position: int, outputs: Tensors) -> decoder_pb2.Prediction:
    return decoder_pb2.Prediction(
        position=position, outputs=[wire.to_tensor(n, a) for n, a in outputs.items()]
    )

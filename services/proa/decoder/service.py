"""proa.api.v1.Decoder: checks a request and reconstructs the missing predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from prometheus_client import CollectorRegistry

from proa import wire
from proa.api.v1 import decoder_pb2, decoder_pb2_grpc
from proa.codes import Code, make_code
from proa.errors import BadAnswer, InvalidRequest, TooManyErasures
from proa.parity import Tensors, bytes_of, decode_outputs, off_loop
from proa.rpc import Context, servicer_errors
from proa.runtime.calls import Calls, step_seconds

NAME = decoder_pb2.DESCRIPTOR.services_by_name["Decoder"].full_name


class DecoderService(decoder_pb2_grpc.DecoderServicer):
    """At most `calls_max` calls at once."""

    def __init__(self, registry: CollectorRegistry, *, calls_max: int) -> None:
        self._calls = Calls(registry, "decoder", calls_max)
        self._decode = step_seconds(registry, "decoder", "decode", "Decoding a group")

    @servicer_errors
    async def Decode(
        self, request: decoder_pb2.DecodeRequest, _context: Context
    ) -> decoder_pb2.DecodeResponse:
        with self._calls:
            start_s = time.monotonic()
            code = read_code(request)
            available = _predictions(request.available, "prediction", code.k)
            parity = _predictions(request.parity, "parity row", code.r)
            size = bytes_of((*available.values(), *parity.values()))
            found = await off_loop(
                size, decode_outputs, code, available, parity, list(request.missing)
            )
            self._decode.observe(time.monotonic() - start_s)
            return decoder_pb2.DecodeResponse(
                reconstructed=[_prediction(i, found[i]) for i in request.missing]
            )


def read_code(request: decoder_pb2.DecodeRequest) -> Code:
    """The code of a request whose counts fit it. Errors: InvalidRequest, WrongGroup,
    TooManyErasures.

    Every count is checked before a byte of a tensor is read.
    """
    code = make_code(request.code.coder, request.code.k, request.code.r)
    if not request.missing:
        raise InvalidRequest("missing: there is nothing to reconstruct")
    if len(request.available) + len(request.missing) != code.k:
        raise InvalidRequest(
            f"{len(request.available)} predictions available and {len(request.missing)} missing"
            f" do not make a group of {code.k}"
        )
    if len(request.parity) > code.r:
        raise InvalidRequest(f"{len(request.parity)} parity rows; the code has {code.r}")
    if len(request.missing) > len(request.parity):
        raise TooManyErasures(
            f"{len(request.missing)} predictions are missing and {len(request.parity)} parity rows"
            " arrived"
        )
    return code


def _predictions(
    messages: Sequence[decoder_pb2.Prediction], what: str, count: int
) -> dict[int, Tensors]:
    found: dict[int, Tensors] = {}
    for message in messages:
        if message.position >= count or message.position in found:
            raise InvalidRequest(f"{what} {message.position}: one of 0 to {count - 1}, each once")
        found[message.position] = wire.from_tensors(message.outputs, f"{what} {message.position}")
    return found


def _prediction(position: int, outputs: Tensors) -> decoder_pb2.Prediction:
    tensors = [wire.to_tensor(name, array) for name, array in outputs.items()]
    return decoder_pb2.Prediction(position=position, outputs=tensors)


async def self_check() -> None:
    """Decode a group whose predictions are known. Errors: BadAnswer."""
    code = make_code("sum", 2, 1)
    available = {0: {"y": np.array([[1.0, 2.0]], np.float32)}}
    parity = {0: {"y": np.array([[4.0, 7.0]], np.float32)}}
    found = decode_outputs(code, available, parity, [1])[1]["y"]
    if not np.allclose(found, [[3.0, 5.0]], rtol=1e-6):
        raise BadAnswer(f"a known group decodes to {found.tolist()}")

"""The two steps of coded redundancy around a worker: run a parity query, reconstruct predictions.

The encoder and decoder services and the inline path of the frontend all come here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from proa import wire
from proa.codes import Code
from proa.errors import BadAnswer, WrongGroup
from proa.rpc import peer_errors
from proa.telemetry import TraceContext, to_metadata

Tensors = Mapping[str, NDArray[Any]]
T = TypeVar("T")
Floats = dict[str, NDArray[np.float32]]

PREFIX = "parity."
# Larger groups are encoded and decoded in a thread: 1 MiB takes about a millisecond, and the event
# loop has other requests to answer.
LOOP_BYTES_MAX = 1 << 20
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


class ParityRunner:
    """Encodes groups and runs their parity queries on workers. Keeps nothing between calls.

    channels: the channel to an address; it is used at once, before any await.
    """

    def __init__(self, channels: Callable[[str], grpc.aio.Channel]) -> None:
        self._channels = channels

    async def infer_parity(
        self,
        *,
        model: str,
        code: Code,
        row: int,
        members: Sequence[Tensors],
        outputs: Sequence[str],
        worker: str,
        timeout_s: float,
        trace: TraceContext | None = None,
    ) -> Floats:
        """The parity prediction of `row`: `encode_members`, then `run`."""
        query = await off_loop(bytes_of(members), encode_members, code, members, row)
        return await self.run(
            model=model,
            row=row,
            query=query,
            outputs=outputs,
            worker=worker,
            timeout_s=timeout_s,
            trace=trace,
        )

    async def run(
        self,
        *,
        model: str,
        row: int,
        query: Tensors,
        outputs: Sequence[str],
        worker: str,
        timeout_s: float,
        trace: TraceContext | None = None,
    ) -> Floats:
        """Call program `parity.<row>` of `model` on `worker` (host:port).

        query: the encoded inputs by name, fp32 [b, ...]; trace: the span that the worker's belong
        to. Returns the outputs by name, finite fp32 [b, ...]. Errors: what the worker says;
        Unavailable, DeadlinePassed; BadAnswer (an output is missing, not FP32, of another batch
        size, NaN or Inf).
        """
        request = wire.write_request(
            model,
            {PREFIX + name: array for name, array in query.items()},
            outputs=[PREFIX + name for name in outputs],
            program=f"{PREFIX}{row}",
        )
        call = self._channels(worker).unary_unary(
            _MODEL_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        async with peer_errors(f"worker {worker}"):
            response = await call(request, timeout=timeout_s, metadata=to_metadata(trace))
        if response is None:  # what grpc makes of bytes that are no such message
            raise BadAnswer(f"worker {worker}: the answer is not a ModelInferResponse")
        batch = {array.shape[:1] for array in query.values()}
        return _checked(wire.read_response(response), outputs, batch, worker)


def encode_members(code: Code, members: Sequence[Tensors], row: int) -> Floats:
    """The parity query of `row`, by input name.

    members: code.k queries in position order, all with the same names; each array [b, ...].
    Returns fp32 of the same shapes. Errors: WrongGroup.
    """
    if len(members) != code.k:
        raise WrongGroup(f"a group of {code.id} has {code.k} members, not {len(members)}")
    _same_names({f"member {i}": member for i, member in enumerate(members)})
    return {
        name: _named(name, code.encode, [member[name] for member in members], row)
        for name in members[0]
    }


def decode_outputs(
    code: Code,
    available: Mapping[int, Tensors],
    parity: Mapping[int, Tensors],
    missing: Sequence[int],
) -> dict[int, Floats]:
    """The predictions of the positions `missing`, from those available and the parity rows.

    available: position -> outputs by name; parity: row -> outputs by name; all of the same names
    and shapes [b, ...], at least one name. Returns position -> name -> fp32 of the same shape.
    Errors: WrongGroup, TooManyErasures.
    """
    everything = {f"prediction {i}": one for i, one in available.items()}
    everything |= {f"parity row {j}": one for j, one in parity.items()}
    names = _same_names(everything)
    found: dict[int, Floats] = {position: {} for position in missing}
    for name in names:
        decoded = _named(
            name,
            code.decode,
            {i: one[name] for i, one in available.items()},
            {j: one[name] for j, one in parity.items()},
            missing,
        )
        for position, array in decoded.items():
            found[position][name] = array
    return found


async def off_loop(size: int, step: Callable[..., T], *args: Any) -> T:
    """`step(*args)`, in a thread if it works on more than LOOP_BYTES_MAX bytes (`size`)."""
    if size > LOOP_BYTES_MAX:
        return await asyncio.to_thread(step, *args)
    return step(*args)


def bytes_of(members: Iterable[Tensors]) -> int:
    """Bytes of all arrays."""
    return sum(array.nbytes for one in members for array in one.values())


def _named(name: str, step: Callable[..., Any], *args: Any) -> Any:
    """`step(*args)`, whose errors say which tensor they are about."""
    try:
        return step(*args)
    except WrongGroup as exc:
        raise WrongGroup(f"tensor {name!r}: {exc}") from exc


def _same_names(named: Mapping[str, Tensors]) -> list[str]:
    """The tensor names that all of them have."""
    if not named or not all(named.values()):
        raise WrongGroup("there is nothing to compute with: no tensors")
    first, *others = named
    for other in others:
        if named[other].keys() != named[first].keys():
            raise WrongGroup(
                f"{other} has the tensors {', '.join(named[other])}; {first} has"
                f" {', '.join(named[first])}"
            )
    return list(named[first])


def _checked(
    found: Tensors, outputs: Sequence[str], batch: set[tuple[int, ...]], worker: str
) -> Floats:
    checked: Floats = {}
    for name in outputs:
        array = found.get(PREFIX + name)
        if array is None:
            raise BadAnswer(f"worker {worker}: parity output {name!r} is missing")
        if array.dtype != np.float32:
            raise BadAnswer(f"worker {worker}: parity output {name!r} has dtype {array.dtype}")
        if array.shape[:1] not in batch:
            raise BadAnswer(
                f"worker {worker}: parity output {name!r} has shape {list(array.shape)} for"
                f" queries of batch {sorted(batch)}"
            )
        if not np.isfinite(array).all():
            raise BadAnswer(f"worker {worker}: parity output {name!r} holds NaN or Inf")
        checked[name] = array
    return checked

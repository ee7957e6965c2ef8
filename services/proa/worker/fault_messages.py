"""proa.api.v1 fault messages to and from the fault record."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from proa.api.v1 import faults_pb2
from proa.errors import InvalidRequest
from proa.worker.faults import Fault, FaultKind, FaultRecord, FaultSite, clock_s


def apply(record: FaultRecord, request: bytes) -> bytes:
    """Do what the serialized FaultRequest says; return the serialized FaultReply.

    Raises InvalidRequest (not such a message, or a field out of limits) and Overloaded (too many).
    """
    try:
        message = faults_pb2.FaultRequest.FromString(request)
    except DecodeError as exc:
        raise InvalidRequest("request is not a proa.api.v1.FaultRequest") from exc
    match message.WhichOneof("op"):
        case "inject":
            record.inject(from_message(message.inject.fault))
        case "clear":
            record.clear(message.clear.id)
        case "list":
            pass
        case _:
            raise InvalidRequest("FaultRequest.op is not set: inject, clear or list")
    reply = faults_pb2.FaultReply(active=[to_message(fault) for fault in record.active()])
    return reply.SerializeToString()


def from_message(message: faults_pb2.Fault) -> Fault:
    """A checked fault. probability 0 and bits 0 mean "not set", which is 1."""
    try:
        kind = FaultKind(message.kind)
    except ValueError as exc:
        raise InvalidRequest(f"fault: kind {message.kind} is not known") from exc
    try:
        site = FaultSite(message.site)
    except ValueError as exc:
        raise InvalidRequest(f"fault: site {message.site} is not known") from exc
    fault = Fault(
        id=message.id,
        kind=kind,
        ttl_ms=message.ttl_ms,
        probability=message.probability or 1.0,
        program=message.program,
        delay_ms=message.delay_ms,
        bits=message.bits or 1,
        seed=message.seed,
        site=site,
    )
    fault.check()
    return fault


def to_message(fault: Fault) -> faults_pb2.Fault:
    """`ttl_ms` is what is left of it."""
    return faults_pb2.Fault(
        id=fault.id,
        kind=faults_pb2.FaultKind.Name(fault.kind.value),
        ttl_ms=max(1, round((fault.expires_s - clock_s()) * 1000)),
        probability=fault.probability,
        program=fault.program,
        delay_ms=fault.delay_ms,
        bits=fault.bits,
        seed=fault.seed,
        site=faults_pb2.FaultSite.Name(fault.site.value),
    )

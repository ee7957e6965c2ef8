"""What an error of the embedding-parity store says beside its status: `proa.api.v1.StoreFault`."""

from __future__ import annotations

from google.rpc import status_pb2  # type: ignore[import-untyped]

from proa.api.v1 import store_pb2 as pb
from proa.errors import DataLost, ProaError, PushIndeterminate, ShardUnavailable, StaleMap

# Details travel as a header, and peers refuse headers above 8 KiB: at most 10 bytes an id, 4/3 of
# that as base64.
LOST_IDS_MAX = 256


def fault_of(error: Exception) -> pb.StoreFault | None:
    """None for an error that says all in its status."""
    match error:
        case ShardUnavailable(retry_after_s=seconds):
            return pb.StoreFault(kind="ShardUnavailable", retry_after_s=seconds)
        case DataLost(table=table, ids=ids):
            return pb.StoreFault(kind="DataLost", table=table, ids=ids[:LOST_IDS_MAX])
        case StaleMap(version=version):
            return pb.StoreFault(kind="StaleMap", version=version)
        case PushIndeterminate(step=step):
            return pb.StoreFault(kind="PushIndeterminate", step=step)
    return None


def error_of(status: status_pb2.Status, message: str) -> ProaError | None:
    """The error that a status with a StoreFault stands for; None without one."""
    fault = pb.StoreFault()
    if not any(detail.Unpack(fault) for detail in status.details):
        return None
    match fault.kind:
        case "ShardUnavailable":
            return ShardUnavailable(message, retry_after_s=fault.retry_after_s)
        case "DataLost":
            return DataLost(message, table=fault.table, ids=tuple(fault.ids))
        case "StaleMap":
            return StaleMap(message, version=fault.version)
        case "PushIndeterminate":
            return PushIndeterminate(message, step=fault.step)
    return None

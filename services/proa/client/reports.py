"""What a frontend says of itself: the first report of its Status stream."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from proa.api.v1 import frontend_pb2
from proa.errors import Unavailable
from proa.rpc import peer_errors


async def read_report(
    channel: grpc.aio.Channel,
    *,
    timeout_s: float,
    metadata: Sequence[tuple[str, str]] | None = None,
) -> frontend_pb2.StatusReport:
    """The frontend's report of now. Errors: those of the call; Unavailable, if it sends none."""
    call = channel.unary_stream(
        "/proa.api.v1.Frontend/Status",
        request_serializer=frontend_pb2.StatusRequest.SerializeToString,
        response_deserializer=frontend_pb2.StatusReport.FromString,
    )(frontend_pb2.StatusRequest(), timeout=timeout_s, metadata=metadata)
    async with peer_errors("frontend"):
        report = await call.read()
    call.cancel()
    if not isinstance(report, frontend_pb2.StatusReport):
        raise Unavailable("the frontend ended its report before it began")
    return report

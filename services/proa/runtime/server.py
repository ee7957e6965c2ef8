"""A gRPC server with what each of ours has: limits, health, reflection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from proa import rpc
from proa.errors import EnvironmentLacks


class HealthServicer(health.aio.HealthServicer):  # type: ignore[name-defined, misc]
    """grpc.health.v1 for asyncio; a class of our own as the stubs do not know the original."""


def make_server(
    *,
    message_bytes_max: int,
    calls_max: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    connection_s_max: float | None = None,
) -> grpc.aio.Server:
    """A server that refuses messages above `message_bytes_max` and calls beyond `calls_max`.

    connection_s_max: older connections get no new calls, those under way go on.
    """
    options = rpc.server_options(message_bytes_max)
    if connection_s_max is not None:
        options.append(("grpc.max_connection_age_ms", round(connection_s_max * 1000)))
    server = grpc.aio.server(
        interceptors=list(interceptors),
        options=options,
        maximum_concurrent_rpcs=calls_max,
    )
    # Each method that generated code registers by name becomes a task that waits for its calls, and
    # each call begins with an asyncio.wait on all of these, 29 in a frontend. Without it they are
    # found by the generic handlers, which generated code adds as well.
    vars(server)["add_registered_method_handlers"] = lambda *_: None
    return server


async def make_health(server: grpc.aio.Server) -> HealthServicer:
    """The health service on `server`, NOT_SERVING until `serve` says otherwise."""
    servicer = HealthServicer()
    await servicer.set(health.OVERALL_HEALTH, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


def add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Server reflection for the services of full name `names`, health and itself."""
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )


def listen(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Bind `server`; returns the port (port 0: any). Errors: EnvironmentLacks (it is taken)."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as exc:
        raise EnvironmentLacks(f"cannot listen on {address}: is the port taken?") from exc

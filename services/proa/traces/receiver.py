"""An OTLP receiver on loopback: HTTP (protobuf and JSON) and gRPC, into one `deliver`.

HTTP runs in threads, gRPC and `deliver` in the event loop. An exporter is answered when its spans
were delivered, so that one that sends too fast waits instead of filling a queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from proa import rpc
from proa.errors import EnvironmentLacks, SettingsError
from proa.runtime.server import listen, make_server
from proa.traces import otlp
from proa.traces.web import Deliver, Inbox, Server

HOST = "127.0.0.1"
SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
CALLS_MAX = 64
STOP_S = 0.2


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int


@contextlib.asynccontextmanager
async def receiving(ports: Ports, deliver: Deliver) -> AsyncIterator[Ports]:
    """Receive until the end of the block; gives the ports (0 in `ports`: any free one).

    `deliver` is called in the event loop. Errors: SettingsError naming the option of a taken port.
    """
    loop = asyncio.get_running_loop()
    web = _listen_http(ports.http, Inbox(loop, deliver))
    try:
        server, grpc_port = _listen_grpc(ports.grpc, deliver)
    except SettingsError:
        web.server_close()
        raise
    thread = threading.Thread(target=web.serve_forever, args=(0.1,), name="otlp", daemon=True)
    thread.start()
    await server.start()
    try:
        yield Ports(web.server_address[1], grpc_port)
    finally:
        await asyncio.to_thread(web.shutdown)
        web.server_close()
        await server.stop(STOP_S)


def _taken(option: str, port: int, why: object) -> SettingsError:
    return SettingsError(
        f"{option} {port}: cannot listen on {HOST}:{port} ({why}); another receiver may run there:"
        f" stop it, or choose another port with {option} (0: any free one)"
    )


class _TraceService:
    """opentelemetry.proto.collector.trace.v1.TraceService, on bytes: the reading is ours."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver

    @rpc.servicer_errors
    async def export(self, request: bytes, _context: rpc.Context) -> bytes:
        self._deliver(otlp.read_protobuf(request))
        return ExportTraceServiceResponse().SerializeToString()


def _listen_grpc(port: int, deliver: Deliver) -> tuple[grpc.aio.Server, int]:
    server = make_server(message_bytes_max=otlp.BODY_BYTES_MAX, calls_max=CALLS_MAX)
    handler = grpc.unary_unary_rpc_method_handler(_TraceService(deliver).export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),)
    )
    try:
        return server, listen(server, HOST, port)
    except EnvironmentLacks as exc:
        raise _taken("--grpc-port", port, "is it taken?") from exc


def _listen_http(port: int, inbox: Inbox) -> Server:
    try:
        return Server((HOST, port), inbox)
    except OSError as exc:
        raise _taken("--port", port, exc.strerror) from exc

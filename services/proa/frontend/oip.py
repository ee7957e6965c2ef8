"""The Open Inference Protocol v2 over gRPC, and the Triton extensions that clients ask for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

import proa
from proa import wire
from proa.errors import BadAnswer, Overloaded, ProaError, UnknownModel
from proa.frontend.auth import Auth
from proa.frontend.metrics import FrontendMetrics
from proa.frontend.models import Model, Models
from proa.frontend.queries import VERSIONS, CheckedQuery, check_request
from proa.frontend.shell import Result
from proa.frontend.tokens import Tenant
from proa.frontend.tracing import Storyteller
from proa.rpc import Context, servicer_errors, status_of
from proa.spec import TensorSpec

log = logging.getLogger(__name__)

EXTENSIONS = ("model_configuration", "statistics", "model_repository", "proa.redundancy")
VERSION = "1"
PLATFORM = "proa"


class OipService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """inference.GRPCInferenceService. What Triton adds and is not here is UNIMPLEMENTED."""

    def __init__(
        self,
        models: Models,
        metrics: FrontendMetrics,
        auth: Auth,
        teller: Storyteller | None,
        *,
        stream_inflight_max: int,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._auth = auth
        self._teller = teller
        self._stream_inflight_max = stream_inflight_max

    @servicer_errors
    async def ServerLive(self, _request: Any, _context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    @servicer_errors
    async def ServerReady(self, _request: Any, _context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._models.ready)

    @servicer_errors
    async def ModelReady(self, request: Any, context: Context) -> Any:
        model = self._model(request, context)
        return service_pb2.ModelReadyResponse(ready=model.ready)

    @servicer_errors
    async def ServerMetadata(self, _request: Any, _context: Context) -> Any:
        return service_pb2.ServerMetadataResponse(
            name="proa", version=proa.__version__, extensions=EXTENSIONS
        )

    @servicer_errors
    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        spec = self._model(request, context).spec
        response = service_pb2.ModelMetadataResponse(
            name=spec.name, versions=[VERSION], platform=PLATFORM
        )
        for target, tensors in (
            (response.inputs, spec.model.inputs),
            (response.outputs, spec.model.outputs),
        ):
            for t in tensors:
                target.add(name=t.name, datatype=t.dtype, shape=(-1, *t.shape))
        return response

    @servicer_errors
    async def ModelInfer(self, request: Any, context: Context) -> Any:
        return await self._infer(request, context, self._tenant(context))

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncIterator[Any]:
        """Requests of one stream run side by side. Those with an id are answered as soon as they
        can be; those without one, among themselves, in order."""
        async for response in _Stream(self, self._stream_inflight_max).run(requests, context):
            yield response

    @servicer_errors
    async def ModelConfig(self, request: Any, context: Context) -> Any:
        model = self._model(request, context)
        spec = model.spec
        config = model_config_pb2.ModelConfig(
            name=spec.name,
            platform=PLATFORM,
            backend=PLATFORM,
            max_batch_size=spec.model.max_batch,
        )
        for tensor in spec.model.inputs:
            config.input.add(name=tensor.name, data_type=_triton_type(tensor), dims=tensor.shape)
        for tensor in spec.model.outputs:
            config.output.add(name=tensor.name, data_type=_triton_type(tensor), dims=tensor.shape)
        config.parameters["proa.package"].string_value = model.pool.package
        config.parameters["proa.policy"].string_value = spec.redundancy.policy
        return service_pb2.ModelConfigResponse(config=config)

    @servicer_errors
    async def ModelStatistics(self, request: Any, context: Context) -> Any:
        tenant = self._tenant(context)
        names = [request.name] if request.name else list(filter(tenant.may, self._models.by_name))
        response = service_pb2.ModelStatisticsResponse()
        for name in names:
            self._auth.check(tenant, name)
            stats = self._models.get(name).shell.engine.state.stats
            one = response.model_stats.add(name=name, version=VERSION)
            one.inference_count = sum(stats.answers.values())
            one.execution_count = stats.sent + sum(stats.redundant.values())
            one.inference_stats.success.count = sum(stats.answers.values())
            one.inference_stats.fail.count = sum(stats.failed.values())
            one.inference_stats.success.ns = round(self._metrics_ns(name))
        return response

    def _metrics_ns(self, name: str) -> float:
        """Nanoseconds of all answered requests of a model together."""
        total = 0.0
        for metric in self._metrics.seconds.collect():
            for sample in metric.samples:
                if sample.name.endswith("_sum") and sample.labels["model"] == name:
                    total += sample.value
        return total * 1e9

    @servicer_errors
    async def RepositoryIndex(self, request: Any, context: Context) -> Any:
        tenant = self._tenant(context)
        response = service_pb2.RepositoryIndexResponse()
        for name, model in self._models.by_name.items():
            if (request.ready and not model.ready) or not tenant.may(name):
                continue
            reason = "" if model.ready else "no worker is ready"
            state = "READY" if model.ready else "UNAVAILABLE"
            response.models.add(name=name, version=VERSION, state=state, reason=reason)
        return response

    # --- the request path

    def _tenant(self, context: Context) -> Tenant:
        return self._auth.tenant(context.invocation_metadata())

    def _model(self, request: Any, context: Context) -> Model:
        self._auth.check(self._tenant(context), request.name)
        model = self._models.get(request.name)
        if request.version not in VERSIONS:
            raise UnknownModel(
                f"model {request.name!r} has version 1, not {request.version[:32]!r}"
            )
        return model

    async def _infer(self, request: Any, context: Context, tenant: Tenant) -> Any:
        name = request.model_name if request.model_name in self._models.by_name else ""
        story = None
        if self._teller is not None:
            story = self._teller.begin(context.invocation_metadata() or ())
            story.model, story.tenant = name, tenant.name
        status, reason = "INTERNAL", ""
        try:
            self._auth.check(tenant, request.model_name)
            model = self._models.get(request.model_name)
            query = check_request(request, model.spec, tenant.name)
            if story is not None:
                story.served, story.policy, story.exact = model, query.policy, query.exact
            result = await model.infer(query, self._deadline(model, query, context), story)
            response = _response(model, query, result)
            status = "OK"
        except (ProaError, asyncio.CancelledError) as exc:
            status, reason = status_of(exc).name, str(exc)
            raise
        finally:
            self._metrics.requests.labels(name, status).inc()
            if story is not None:
                story.end(status, reason)
        return response

    def _deadline(self, model: Model, query: CheckedQuery, context: Context) -> float:
        """When the answer is due (time.monotonic, s): what the parameter `timeout` says, else the
        spec's default; the call's own deadline can only make it earlier."""
        limit_s = query.timeout_s or model.spec.slo.default_deadline_ms / 1000.0
        remaining_s = context.time_remaining()
        return time.monotonic() + min(limit_s, limit_s if remaining_s is None else remaining_s)


def _response(model: Model, query: CheckedQuery, result: Result) -> Any:
    parameters: dict[str, wire.Parameter] = {"proa.source": result.source}
    if result.group is not None:
        parameters["proa.group"] = result.group
    if result.worker is not None:
        parameters["proa.worker"] = result.worker
    if result.verdict is not None:
        parameters["proa.abft"] = result.verdict
    outputs = {name: result.outputs[name] for name in query.wanted}
    return wire.write_response(model.spec.name, VERSION, query.id, outputs, parameters)


def _triton_type(tensor: TensorSpec) -> int:
    name = "STRING" if tensor.dtype == "BYTES" else tensor.dtype
    value: int = model_config_pb2.DataType.Value(f"TYPE_{name}")
    return value


class _Stream:
    """One ModelStreamInfer call."""

    def __init__(self, service: OipService, inflight_max: int) -> None:
        self._service = service
        self._places = asyncio.Semaphore(inflight_max)
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_unnamed: asyncio.Task[None] | None = None

    async def run(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        reader = asyncio.create_task(self._read(requests, context))
        try:
            while (response := await self._answers.get()) is not None:
                yield response
                # Only now: a client that does not read must not make us keep its answers.
                self._places.release()
            await reader
        finally:
            for task in (reader, *self._tasks):
                task.cancel()
            await asyncio.gather(reader, *self._tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[Any], context: Context) -> None:
        try:
            async for request in requests:
                await self._places.acquire()
                after = None if request.id else self._last_unnamed
                task = asyncio.create_task(self._answer(request, context, after))
                if not request.id:
                    self._last_unnamed = task
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._answers.put_nowait(None)

    async def _answer(
        self, request: Any, context: Context, after: asyncio.Task[None] | None
    ) -> None:
        try:
            # Each counts as a call, of a token that may be gone by now.
            tenant = self._service._auth.admit(context.invocation_metadata())  # noqa: SLF001
            found = await self._service._infer(request, context, tenant)  # noqa: SLF001
            response = service_pb2.ModelStreamInferResponse(infer_response=found)
        except ProaError as exc:
            response = _stream_error(exc, request.id)
        except Exception:
            log.exception("unexpected error in ModelStreamInfer")
            response = _stream_error(BadAnswer("internal error"), request.id)
        if after is not None:
            await asyncio.wait([after])
        self._answers.put_nowait(response)


def _stream_error(error: ProaError, request_id: str) -> Any:
    """A stream has no status for each answer: it travels in parameters."""
    response = service_pb2.ModelStreamInferResponse(error_message=str(error))
    response.infer_response.id = request_id
    parameters: dict[str, wire.Parameter] = {"proa.status": status_of(error).name}
    if isinstance(error, Overloaded):
        parameters["proa.retry_after_ms"] = round(error.retry_after_s * 1000)
    wire.set_parameters(response.infer_response.parameters, parameters)
    return response


def add_oip(server: grpc.aio.Server, service: OipService) -> str:
    """Register the service; its full name."""
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    name: str = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    return name

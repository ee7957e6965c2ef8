"""A worker without Triton: a real gRPC server on loopback that speaks its protocol.

Model `digits`: input `image` FP32 [b, 1, 8, 8], output `logits` FP32 [b, 10] = W x of the flattened
image. The parity programs compute the same linear function (`parity.image` -> `parity.logits`), so
that reconstructions are exact up to fp32 rounding. As in a real worker, one computation runs at a
time, and one that has begun is not stopped by a cancellation.

    async with FakeTriton() as worker:
        channel = rpc.connect(worker.address, message_bytes_max=1 << 20)
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from proa import rpc, wire
from proa.errors import InvalidRequest, ProaError, UnknownModel
from proa.rpc import Context, servicer_errors
from proa.runtime.server import listen

Floats = NDArray[np.float32]

IMAGE = (1, 8, 8)
CLASSES = 10
MAX_BATCH = 8
LOAD, ABFT = "proa.load", "proa.abft"
CORRUPTED = "silent data corruption in layer fc (row 0, column 3), not repaired"
MESSAGE_BYTES_MAX = 64 << 20
WEIGHTS: Floats = np.random.default_rng(7).normal(size=(CLASSES, 64)).astype(np.float32)


def linear(images: Floats) -> Floats:
    """What every fake worker answers: images [b, 1, 8, 8] -> logits [b, 10]."""
    found: Floats = images.reshape(len(images), -1) @ WEIGHTS.T
    return found


def images(count: int, *, batch: int = 1, seed: int = 0) -> list[Floats]:
    """`count` queries [batch, 1, 8, 8] fp32."""
    rng = np.random.default_rng(seed)
    return [rng.random((batch, *IMAGE), dtype=np.float32) for _ in range(count)]


class Refused(ProaError):
    """An answer with any status; `fail_next` makes them."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Knobs may be turned at any time; counters may be read at any time.

    Knobs: `service_s` every computation holds the worker that long; `delay_s` each `delay_each`-th
    answer comes that much later, without holding it; `pause()` / `resume()` computations block
    (half-alive: everything else answers); `fail_next(n, status)`; `change` alters the outputs
    before they are sent (wrong shapes, NaN); `ready` what the ready calls say; `package`,
    `programs`, `code` what the model configuration says; `reports_load`: whether there is an output
    `proa.load`; `verdict`: what output `proa.abft` of the deployed program says (8 numbers, or any
    array), None: there is none; `corrupt_next(n)`: it finds its next n computations of a program to
    be wrong, and refuses.
    Counters: `calls` by program, `computed` by program, `busy_s`, `cancelled`, `failed`; `seen`:
    requests.
    """

    def __init__(
        self,
        *,
        model: str = "digits",
        programs: Sequence[str] = ("deployed", "parity.0"),
        package: str = "fa4e",
        code: str = "sum:2:1",
        service_s: float = 0.0,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.model = model
        self._credentials = credentials
        self.programs = tuple(programs)
        self.package = package
        self.code = code
        self.reports_load = True
        self.verdict: NDArray[Any] | Sequence[float] | None = None
        self.busy_s = 0.0
        self.service_s = service_s
        self.delay_s, self.delay_each = 0.0, 1
        self.ready = True
        self.max_batch = MAX_BATCH
        self.change: Callable[[Floats], NDArray[Any]] | None = None
        self.calls: Counter[str] = Counter()
        self.computed: Counter[str] = Counter()
        self.cancelled = 0
        self.failed = 0
        self.seen: list[Any] = []
        self.port = 0
        self._failures: list[str] = []
        self._corrupt: Counter[str] = Counter()
        self._device = asyncio.Lock()
        self._running = asyncio.Event()
        self._running.set()
        self._computations: set[asyncio.Task[Floats]] = set()
        self._server: grpc.aio.Server | None = None

    linear = staticmethod(linear)

    @property
    def address(self) -> str:
        """host:port; the same after `stop` and `start`."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen: on any port the first time, then on the same one."""
        self._server = grpc.aio.server(options=rpc.server_options(MESSAGE_BYTES_MAX))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = listen(self._server, "127.0.0.1", self.port, self._credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Die: calls under way fail, connections break."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        for task in self._computations:
            task.cancel()
        await asyncio.gather(*self._computations, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    def pause(self) -> None:
        """Computations block until `resume`; the worker is held by the first of them."""
        self._running.clear()

    def resume(self) -> None:
        self._running.set()

    def fail_next(self, count: int = 1, status: str = "UNAVAILABLE") -> None:
        """Answer the next `count` inferences with `status` (a name, as INTERNAL)."""
        self._failures.extend([status] * count)

    def corrupt_next(self, count: int = 1, program: str = "deployed") -> None:
        self._corrupt[program] += count

    def restart(self) -> None:
        """A new process in its place, as far as anybody can tell from its answers."""
        self.computed.clear()
        self.busy_s = 0.0

    @property
    def busy(self) -> bool:
        """A computation is running."""
        return self._device.locked()

    @servicer_errors
    async def ModelInfer(self, request: Any, context: Context) -> Any:
        program = str(wire.get_parameters(request.parameters).get("proa.program", "deployed"))
        self.calls[program] += 1
        self.seen.append(request)
        try:
            return await self._infer(request, program)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except ProaError:
            self.failed += 1
            raise

    async def _infer(self, request: Any, program: str) -> Any:
        self._check_model(request.model_name)
        if self._failures:
            status = self._failures.pop(0)
            raise Refused(status, f"the fake worker was told to fail with {status}")
        if self._corrupt[program] > 0:
            self._corrupt[program] -= 1
            raise Refused("UNAVAILABLE", CORRUPTED)
        if program not in self.programs:
            raise InvalidRequest(f"proa.program={program!r} is not hosted here")
        prefix = "" if program == "deployed" else "parity."
        image = _image(wire.read_request(request), f"{prefix}image")
        answer: NDArray[Any] = await self._compute(program, image)
        if self.computed.total() % self.delay_each == 0:
            await asyncio.sleep(self.delay_s)
        if self.change is not None:
            answer = self.change(np.array(answer))
        wanted = [output.name for output in request.outputs] or [f"{prefix}logits", LOAD]
        tensors = {name: answer for name in wanted if name == f"{prefix}logits"}
        if LOAD in wanted and self.reports_load:
            done = np.array([self.computed.total(), self.busy_s * 1e6], np.int64)
            tensors[LOAD] = np.tile(done, (len(image), 1))
        if ABFT in wanted and self.verdict is not None:
            tensors[ABFT] = self._verdict(len(image))
        return wire.write_response(self.model, "1", request.id, tensors, {})

    def _verdict(self, batch: int) -> NDArray[Any]:
        if isinstance(self.verdict, np.ndarray):
            return self.verdict
        return np.tile(np.array(self.verdict, np.float64), (batch, 1))

    async def _compute(self, program: str, image: Floats) -> Floats:
        """Cancelled while it waits, it is never computed; after that the device works on."""
        await self._device.acquire()
        task = asyncio.ensure_future(self._hold(program, image))
        self._computations.add(task)
        task.add_done_callback(self._computations.discard)
        return await asyncio.shield(task)

    async def _hold(self, program: str, image: Floats) -> Floats:
        started = time.monotonic()
        try:
            await self._running.wait()
            await asyncio.sleep(self.service_s)
            self.computed[program] += 1
            self.busy_s += time.monotonic() - started
            return linear(image)
        finally:
            self._device.release()

    def _check_model(self, name: str) -> None:
        if name != self.model:
            raise UnknownModel(f"Request for unknown model: {name!r} is not found")

    @servicer_errors
    async def ServerLive(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerLiveResponse(live=True)

    @servicer_errors
    async def ServerReady(self, request: Any, context: Context) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    @servicer_errors
    async def ModelReady(self, request: Any, context: Context) -> Any:
        return service_pb2.ModelReadyResponse(ready=self.ready and request.name == self.model)

    @servicer_errors
    async def ModelMetadata(self, request: Any, context: Context) -> Any:
        self._check_model(request.name)
        found = service_pb2.ModelMetadataResponse(
            name=self.model, versions=["1"], platform="python"
        )
        for prefix in self._prefixes():
            found.inputs.add(name=f"{prefix}image", datatype="FP32", shape=(-1, *IMAGE))
            found.outputs.add(name=f"{prefix}logits", datatype="FP32", shape=(-1, CLASSES))
        return found

    @servicer_errors
    async def ModelConfig(self, request: Any, context: Context) -> Any:
        self._check_model(request.name)
        config = model_config_pb2.ModelConfig(
            name=self.model, backend="python", max_batch_size=self.max_batch
        )
        kind = model_config_pb2.TYPE_FP32
        for prefix in self._prefixes():
            config.input.add(name=f"{prefix}image", data_type=kind, dims=IMAGE, optional=True)
            config.output.add(name=f"{prefix}logits", data_type=kind, dims=(CLASSES,))
        if self.reports_load:
            config.output.add(name=LOAD, data_type=model_config_pb2.TYPE_INT64, dims=(2,))
        if self.verdict is not None:
            config.output.add(name=ABFT, data_type=model_config_pb2.TYPE_FP64, dims=(8,))
        config.parameters["proa.code"].string_value = self.code
        config.parameters["proa.package"].string_value = self.package
        config.parameters["proa.programs"].string_value = ",".join(self.programs)
        return service_pb2.ModelConfigResponse(config=config)

    def _prefixes(self) -> list[str]:
        return ["", "parity."] if len(self.programs) > 1 else [""]


def _image(inputs: dict[str, NDArray[Any]], name: str) -> Floats:
    found = inputs.get(name)
    if found is None:
        raise InvalidRequest(f"input {name!r} is missing")
    if found.dtype != np.float32 or found.shape[1:] != IMAGE or not 1 <= len(found) <= MAX_BATCH:
        raise InvalidRequest(f"input {name!r} is {found.dtype} {list(found.shape)}")
    return found

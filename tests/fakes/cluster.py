"""A frontend in this process over fake workers: what frontend tests run against."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import yaml
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2_grpc

from fakes.eventually import eventually
from fakes.triton_fake import FakeTriton, Floats, images, linear
from proa import rpc, wire
from proa.api.v1 import faults_pb2, faults_pb2_grpc, frontend_pb2, frontend_pb2_grpc
from proa.client import AsyncClient, ProaError
from proa.cluster.endpoints import EndpointSource
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.encoder.main import serve_encoder
from proa.encoder.settings import EncoderSettings
from proa.frontend.main import serve_frontend
from proa.frontend.settings import FrontendSettings

MESSAGE_BYTES_MAX = 64 << 20

SPEC = """\
apiVersion: proa.dev/v1alpha1
kind: CodedModel
metadata: {{name: {name}}}
spec:
  model:
    program: digits.pt2
    maxBatch: 8
    inputs: [{{name: image, dtype: FP32, shape: [1, 8, 8]}}]
    outputs: [{{name: logits, dtype: FP32, shape: [10]}}]
  redundancy: {redundancy}
  protection: {protection}
  slo: {{latencyMs: {latency_ms:g}, defaultDeadlineMs: 2000}}
"""


def write_spec(
    folder: Path,
    redundancy: str = "policy: auto",
    name: str = "digits",
    *,
    protection: str = "mode: none",
    latency_ms: float = 50.0,
) -> Path:
    """A spec of the fake workers' model; `redundancy`: the keys that differ from the usual ones.
    Before 20 answers, what takes longer than `latency_ms` is late."""
    usual = {"parity": {"2": ["parity.pt2"]}, "placement": "inline"}
    fields = {**usual, **yaml.safe_load(f"{{{redundancy}}}")}
    path = folder / f"{name}.yaml"
    text = SPEC.format(
        name=name,
        redundancy=json.dumps(fields),
        protection=f"{{{protection}}}",
        latency_ms=latency_ms,
    )
    path.write_text(text, encoding="utf-8")
    return path


def worker_list(model: str, workers: list[FakeTriton], roles: dict[int, str] | None = None) -> str:
    """The workers of a model as PROA_FRONTEND_WORKERS names them: w0, w1 and on."""
    names = [
        f"{w.address}@w{i}" + (f"#{roles[i]}" if roles and i in roles else "")
        for i, w in enumerate(workers)
    ]
    return f"{model}={','.join(names)}"


@dataclass
class Frontend:
    """`address`: the frontend's OIP port; `admin_port`: its admin port; `stub`: the protocol;
    `task`: the process, cancelled by a signal."""

    address: str
    admin_port: int
    channel: grpc.aio.Channel
    task: asyncio.Task[None]

    @property
    def stub(self) -> Any:
        return service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def infer(self, request: Any, timeout_s: float | None = None) -> Any:
        """ModelInfer of a message as it is. Errors: of the tree in proa.errors."""
        async with rpc.peer_errors("frontend"):
            return await self.stub.ModelInfer(request, timeout=timeout_s)

    async def ready(self, *models: str) -> None:
        """Wait until the models (else the server) have a worker."""
        async with AsyncClient(self.address) as client:
            for model in models or (None,):
                await until(lambda model=model: client.is_ready(model))  # type: ignore[misc]

    async def status(self, model: str = "digits") -> frontend_pb2.ModelStatus:
        """One model in the first report of a Status stream."""
        call = frontend_pb2_grpc.FrontendStub(self.channel).Status(  # type: ignore[no-untyped-call]
            frontend_pb2.StatusRequest()
        )
        report = await call.read()
        call.cancel()
        (found,) = (one for one in report.models if one.name == model)
        return found

    async def states(self) -> list[str]:
        """The states of the workers of model `digits`, w0 first: starting, up or suspected."""
        return [worker.state.partition(":")[0] for worker in (await self.status()).workers]

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the admin port."""
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.admin_port}{path}")

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that have these labels."""
        return await _metric(self.admin_port, name, labels)


@dataclass
class Cluster(Frontend):
    """A frontend and its workers."""

    workers: list[FakeTriton]

    @property
    def computed(self) -> list[int]:
        """How many queries each worker has computed."""
        return [worker.computed["deployed"] for worker in self.workers]


def request(image: Floats | None = None, **parameters: wire.Parameter) -> Any:
    """A ModelInferRequest for model `digits`, good unless changed."""
    (usual,) = images(1)
    found = wire.write_request("digits", {"image": usual if image is None else image}, outputs=())
    wire.set_parameters(found.parameters, {k.replace("_", "."): v for k, v in parameters.items()})
    return found


@contextlib.asynccontextmanager
async def frontend(
    *, source: EndpointSource | None = None, **settings: object
) -> AsyncIterator[Frontend]:
    """A frontend on loopback; it listens, its models need not be ready. `source`: its discovery."""
    values = {"host": "127.0.0.1", "port": 0, "admin_port": 0, "grace_s": 0.2, **settings}
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve_frontend(
            FrontendSettings(**values),  # type: ignore[arg-type]
            listening=listening,
            source=source,
        )
    )
    try:
        await asyncio.wait([task, listening], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        port, admin_port = listening.result()
        address = f"127.0.0.1:{port}"
        async with rpc.connect(address, message_bytes_max=MESSAGE_BYTES_MAX) as channel:
            yield Frontend(address, admin_port, channel, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def cluster(
    folder: Path,
    redundancy: str = "policy: auto",
    *,
    workers: int = 4,
    service_s: float = 0.0,
    roles: dict[int, str] | None = None,
    fakes: list[FakeTriton] | None = None,
    up: int | None = None,
    protection: str = "mode: none",
    latency_ms: float = 50.0,
    **settings: object,
) -> AsyncIterator[Cluster]:
    """A frontend with `workers` fakes, of which `up` (all, if not given) have joined. `roles`:
    index -> `deployed` or `parity`."""
    found = fakes or [FakeTriton(service_s=service_s) for _ in range(workers)]
    async with contextlib.AsyncExitStack() as stack:
        for worker in found:
            await stack.enter_async_context(worker)
        values = {
            "specs": str(
                write_spec(folder, redundancy, protection=protection, latency_ms=latency_ms)
            ),
            "workers": worker_list("digits", found, roles),
            **settings,
        }
        served = await stack.enter_async_context(frontend(**values))
        made = Cluster(served.address, served.admin_port, served.channel, served.task, found)
        wanted = len(found) if up is None else up
        await until(lambda: _count(made, "up", wanted))
        if wanted:
            await until(lambda: _is_ready(made))
        yield made


async def _is_ready(served: Frontend) -> bool:
    return (await served.page("/readyz"))[0] == 200


async def _count(served: Frontend, state: str, wanted: int) -> bool:
    return (await served.states()).count(state) >= wanted


class Load:
    """Clients that ask one query after the other until the `async with` block ends.

    `answers`: queries and their answers by now; `errors`: of those that failed.
    """

    def __init__(self, address: str, *, clients: int = 3, **options: Any) -> None:
        self.answers: list[tuple[Floats, Any]] = []
        self.errors: list[ProaError] = []
        # Without retries of the client's own: what a frontend loses is to be seen.
        self._client = AsyncClient(address, **{"deadline_s": 3.0, "retry": False, **options})
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []

    async def _run(self, seed: int) -> None:
        while True:
            (image,) = images(1, seed=seed)
            seed += self._clients
            try:
                self.answers.append((image, await self._client.infer("digits", {"image": image})))
            except ProaError as exc:
                self.errors.append(exc)

    @property
    def right(self) -> bool:
        """Whether all answers so far are; a reconstruction has a small rounding error."""
        return all(
            np.allclose(answer["logits"], linear(image), rtol=1e-3, atol=1e-3)
            for image, answer in self.answers
        )

    @property
    def sources(self) -> set[str]:
        return {answer.source for _, answer in self.answers}

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted = len(self.answers) + count
        await eventually(lambda: len(self.answers) >= wanted)

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._run(i)) for i in range(self._clients)]
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()


class Coder:
    """An encoder or a decoder in this process, with fault injection; restarts on its port."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._port = 0
        self._admin_port = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        fields: dict[str, Any] = {"host": "127.0.0.1", "port": self._port, "admin_port": 0}
        fields |= {"grace_s": 0.0, "faults": True}
        listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        work = (
            serve_encoder(EncoderSettings(**fields), listening=listening)
            if self._kind == "encoder"
            else serve_decoder(DecoderSettings(**fields), listening=listening)
        )
        self._task = asyncio.create_task(work)
        await asyncio.wait([self._task, listening], return_when=asyncio.FIRST_COMPLETED)
        self._port, self._admin_port = listening.result()

    async def stop(self) -> None:
        """Die: calls under way fail, connections break."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def calls(self) -> float:
        """How many calls it has answered since its start."""
        return await _metric(self._admin_port, f"proa_{self._kind}_calls_total", {"status": "OK"})

    async def hang(self) -> None:
        """Take calls and answer none, until `recover`."""
        fault = faults_pb2.Fault(id="hang", kind=faults_pb2.PAUSE, ttl_ms=60_000)
        await self._fault("Inject", faults_pb2.InjectRequest(fault=fault))

    async def recover(self) -> None:
        await self._fault("Clear", faults_pb2.ClearRequest())

    async def _fault(self, method: str, message: Any) -> None:
        async with rpc.connect(self.address, message_bytes_max=1 << 20) as channel:
            stub = faults_pb2_grpc.FaultInjectorStub(channel)  # type: ignore[no-untyped-call]
            await getattr(stub, method)(message, timeout=10, wait_for_ready=True)

    async def __aenter__(self) -> Coder:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()


async def one_of_two_missing(
    served: Cluster, **parameters: wire.Parameter
) -> tuple[Any, FakeTriton]:
    """Two queries of one group on three fresh workers, the first with `parameters` and on a worker
    that is stuck; the second and the parity row are answered. Returns the call and the worker."""
    for worker in served.workers:
        worker.pause()
    queries = images(2, seed=9)
    first = served.stub.ModelInfer(request(queries[0], timeout=30_000_000, **parameters))
    second = served.stub.ModelInfer(request(queries[1], timeout=30_000_000))
    # Beside the canaries: two queries, one parity row.
    await eventually(lambda: _calls(served, "deployed") == 5 and _calls(served, "parity.0") == 4)
    contents = [worker.seen[-1].raw_input_contents[0] for worker in served.workers]
    stuck = served.workers[contents.index(queries[0].tobytes())]
    for worker in served.workers:
        if worker is not stuck:
            worker.resume()
    await second
    return first, stuck


def _calls(served: Cluster, program: str) -> int:
    return sum(worker.calls[program] for worker in served.workers)


async def is_decodable(served: Frontend) -> bool:
    """Whether a group has all that it takes to reconstruct a missing prediction."""
    return await served.metric("proa_groups_open", state="decodable") == 1


async def until(condition: Callable[[], Awaitable[object]], *, timeout_s: float = 10.0) -> None:
    """`eventually` for a condition that is asked over the network."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def _metric(port: int, name: str, labels: dict[str, str]) -> float:
    _, text = await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/metrics")
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()

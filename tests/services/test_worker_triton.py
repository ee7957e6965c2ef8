"""A packed model behind a real tritonserver, seen by unmodified clients of Triton."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from fakes.eventually import eventually_sync
from fakes.programs import INPUT, Linear, Logarithm, coded_model, export, linear_model
from fakes.worker_process import WorkerProcess
from proa.api.v1 import faults_pb2
from proa.worker.package import pack

pytestmark = pytest.mark.triton

Array = NDArray[Any]
SERVICE_S = 0.02


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    repository = pack(linear_model(folder), folder / "repo", faults=True)
    logarithm = export(Logarithm(), folder / "log.pt2")
    pack(coded_model(folder, logarithm, name="log"), repository, faults=True)
    # No canary while we count computations.
    settings = {"SERVICE_MS": str(SERVICE_S * 1000), "CANARY_S": "600"}
    with WorkerProcess(repository, folder, **settings) as found:
        yield found


@pytest.fixture
def client(worker: WorkerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(worker.address) as found:
        yield found
        inject(found, clear=faults_pb2.ClearRequest())


def images(batch: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, *INPUT.shape), dtype=np.float32)


def expected(queries: Array) -> Array:
    with torch.no_grad():
        found: Array = Linear()(torch.from_numpy(queries)).numpy()
    return found


def tensor(name: str, value: Array, kind: Any = triton) -> Any:
    found = kind.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
    found.set_data_from_numpy(value)
    return found


def infer(client: Any, queries: Array, model: str = "tiny", **options: Any) -> Array:
    answer: Array = client.infer(model, [tensor("image", queries)], **options).as_numpy("logits")
    return answer


def infer_parity(client: Any, queries: Array) -> Array:
    answer: Array = client.infer(
        "tiny", [tensor("parity.image", queries)], parameters={"proa.program": "parity.0"}
    ).as_numpy("parity.logits")
    return answer


def inject(client: Any, **op: Any) -> list[faults_pb2.Fault]:
    request = faults_pb2.FaultRequest(**op).SerializeToString()
    answer = client.infer("proa_faults", [tensor("request", np.frombuffer(request, np.uint8))])
    reply = faults_pb2.FaultReply.FromString(answer.as_numpy("reply").tobytes())
    return list(reply.active)


def fault(kind: faults_pb2.FaultKind, ttl_ms: int = 20_000, **more: Any) -> dict[str, Any]:
    made = faults_pb2.Fault(**({"id": "test"} | more), kind=kind, ttl_ms=ttl_ms)
    return {"inject": faults_pb2.InjectRequest(fault=made)}


def later(client: Any, queries: Array, **options: Any) -> tuple[Any, Future[Any]]:
    """An inference under way: the call, which can be cancelled, and its answer."""
    future: Future[Any] = Future()

    def done(result: Any, error: Any) -> None:
        future.set_exception(error) if error else future.set_result(result.as_numpy("logits"))

    return client.async_infer("tiny", [tensor("image", queries)], done, **options), future


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_deployed_and_parity_programs_give_what_torch_gives(client: Any, batch: int) -> None:
    queries = images(batch)
    np.testing.assert_allclose(infer(client, queries), expected(queries), rtol=0, atol=1e-6)
    np.testing.assert_allclose(infer_parity(client, queries), expected(queries), rtol=0, atol=1e-6)


async def test_the_aio_client(worker: WorkerProcess) -> None:
    async with triton_aio.InferenceServerClient(worker.address) as client:
        queries = images(2)
        answer = await client.infer("tiny", [tensor("image", queries, triton_aio)])
        np.testing.assert_allclose(answer.as_numpy("logits"), expected(queries), atol=1e-6)


def test_its_stubs_have_few_threads_in_triton(worker: WorkerProcess) -> None:
    """32 for each of three stubs would be Triton's own choice."""
    (server,) = worker.processes("tritonserver")
    assert len(list(Path(f"/proc/{server}/task").iterdir())) < 3 * 32


def test_what_a_frontend_learns_of_the_worker(client: Any) -> None:
    config = client.get_model_config("tiny").config
    assert re.fullmatch("[0-9a-f]{64}", config.parameters["proa.package"].string_value)
    assert config.parameters["proa.programs"].string_value == "deployed,parity.0"
    assert config.parameters["proa.code"].string_value == "sum:2:1"
    assert "proa.load" in {output.name for output in config.output}


def test_a_worker_reports_its_load_to_those_who_ask(client: Any) -> None:
    def ask(batch: int, *names: str) -> Any:
        outputs = [triton.InferRequestedOutput(name) for name in names]
        return client.infer("tiny", [tensor("image", images(batch))], outputs=outputs)

    first = ask(2, "logits", "proa.load")
    np.testing.assert_allclose(first.as_numpy("logits"), expected(images(2)), atol=1e-6)
    before = first.as_numpy("proa.load")
    assert before.dtype == np.int64
    assert before.shape == (2, 2)
    np.testing.assert_array_equal(before[0], before[1])
    infer_parity(client, images(1))
    assert ask(1, "logits").as_numpy("proa.load") is None
    after = ask(1, "logits", "proa.load").as_numpy("proa.load")
    (finished, busy_us), (done, held_us) = before[0], after[0]
    assert done == finished + 3
    assert 3 * SERVICE_S <= (held_us - busy_us) / 1e6 < 1.0
    with pytest.raises(InferenceServerException, match="it has logits"):
        ask(1, "parity.logits", "proa.load")


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"image": images(1)[:, :, :3]}, {}, "unexpected shape for input 'image'"),
        ({"image": images(1).astype(np.float64)}, {}, "data-type"),
        ({"image": images(5)}, {}, "batch-size must be <= 4"),
        ({"parity.image": images(1)}, {}, r"input 'image' is missing$"),
        ({}, {}, "request has 0 inputs"),
        ({"image": images(1)}, {"program": "parity.0"}, r"input 'parity\.image' is missing$"),
        ({"image": images(1)}, {"program": "other"}, r"it hosts deployed, parity\.0$"),
        ({"image": images(1)}, {"outputs": ["parity.logits"]}, r"it has logits$"),
    ],
)
def test_requests_a_client_can_correct(
    client: Any, inputs: dict[str, Array], options: dict[str, Any], message: str
) -> None:
    program = options.get("program")
    outputs = [triton.InferRequestedOutput(name) for name in options.get("outputs", [])]
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer(
            "tiny",
            [tensor(name, value) for name, value in inputs.items()],
            outputs=outputs or None,
            parameters={"proa.program": program} if program else None,
        )
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "Traceback" not in str(caught.value)


def test_nan_is_an_error_not_an_answer(client: Any) -> None:
    np.testing.assert_allclose(infer(client, images(1) * 0, "log"), np.zeros((1, 3)))
    with pytest.raises(InferenceServerException) as caught:
        infer(client, images(1) * 0 - 2, "log")
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert caught.value.message() == "model produced NaN or Inf in output 'logits'"


async def test_one_computation_at_a_time(worker: WorkerProcess) -> None:
    async with triton_aio.InferenceServerClient(worker.address) as client:

        async def one() -> None:
            await client.infer("tiny", [tensor("image", images(1), triton_aio)])

        started = time.monotonic()
        await asyncio.gather(one(), one())
        assert 2 * SERVICE_S <= time.monotonic() - started < 1.0


async def test_each_of_a_burst_gets_its_own_answer(worker: WorkerProcess) -> None:
    """More than the pipeline takes in, of both programs, with refused ones between them."""
    async with triton_aio.InferenceServerClient(worker.address) as client:

        async def ask(i: int) -> Array:
            queries, name = images(1 + i % 4, seed=i), ("", "parity.")[i % 2]
            answer = await client.infer(
                "tiny",
                [tensor(f"{name}image", queries, triton_aio)],
                parameters={"proa.program": "parity.0"} if name else None,
            )
            found: Array = answer.as_numpy(f"{name}logits")
            np.testing.assert_allclose(found, expected(queries), atol=1e-6)
            return found

        async def refused() -> None:
            with pytest.raises(InferenceServerException, match="it hosts deployed"):
                await client.infer(
                    "tiny",
                    [tensor("image", images(1), triton_aio)],
                    parameters={"proa.program": "other"},
                )

        await asyncio.gather(*(refused() if i % 5 == 4 else ask(i) for i in range(30)))


def test_a_cancelled_query_is_not_computed(client: Any) -> None:
    """Seen by the clock: Triton counts a cancelled request among its successes."""
    inject(client, **fault(faults_pb2.PAUSE))
    _, first = later(client, images(1))
    with pytest.raises(TimeoutError):
        first.result(0.2)
    call, second = later(client, images(1))
    _, third = later(client, images(1))
    call.cancel()
    with pytest.raises(InferenceServerException, match="cancelled"):
        second.result(5)
    # Whatever is computed after the paused one takes half a second.
    inject(client, **fault(faults_pb2.DELAY, id="slow", delay_ms=500))
    inject(client, clear=faults_pb2.ClearRequest(id="test"))
    started = time.monotonic()
    for future in (first, third):
        np.testing.assert_allclose(future.result(5), expected(images(1)), atol=1e-6)
    assert 0.5 <= time.monotonic() - started < 1.0


def test_a_query_cancelled_during_a_computation_of_the_usual_length(client: Any) -> None:
    """The worker knows by then when the turn of the next comes, and looks at it just before."""
    inject(client, **fault(faults_pb2.DELAY, delay_ms=500))
    infer(client, images(1))
    started = time.monotonic()
    _, first = later(client, images(1))
    with pytest.raises(TimeoutError):
        first.result(0.1)
    call, second = later(client, images(1))
    with pytest.raises(TimeoutError):
        second.result(0.1)
    _, third = later(client, images(1))
    call.cancel()
    for future in (first, third):
        np.testing.assert_allclose(future.result(5), expected(images(1)), atol=1e-6)
    assert 1.0 <= time.monotonic() - started < 1.5


def test_delay_holds_the_worker_and_ends_by_itself(client: Any) -> None:
    inject(client, **fault(faults_pb2.DELAY, ttl_ms=800, delay_ms=500))
    started = time.monotonic()
    infer(client, images(1))
    assert time.monotonic() - started >= 0.5 + SERVICE_S
    eventually_sync(lambda: not inject(client, list=faults_pb2.ListRequest()))
    started = time.monotonic()
    infer(client, images(1))
    assert time.monotonic() - started < 0.5


def test_pause_blocks_until_its_time_is_up(client: Any) -> None:
    inject(client, **fault(faults_pb2.PAUSE, ttl_ms=300))
    started = time.monotonic()
    np.testing.assert_allclose(infer(client, images(1)), expected(images(1)), atol=1e-6)
    assert time.monotonic() - started >= 0.29


def test_pause_can_be_cleared_while_it_blocks(client: Any) -> None:
    inject(client, **fault(faults_pb2.PAUSE))
    _, answer = later(client, images(1))
    with pytest.raises(TimeoutError):
        answer.result(0.3)
    inject(client, clear=faults_pb2.ClearRequest(id="test"))
    np.testing.assert_allclose(answer.result(5), expected(images(1)), atol=1e-6)


def test_error_hits_only_its_program(client: Any) -> None:
    inject(client, **fault(faults_pb2.ERROR, program="parity.0"))
    infer(client, images(1))
    with pytest.raises(InferenceServerException) as caught:
        infer_parity(client, images(1))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message() == "injected fault"


def test_drop_is_silence_and_the_worker_goes_on(client: Any) -> None:
    inject(client, **fault(faults_pb2.DROP, ttl_ms=600))
    with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
        infer(client, images(1), client_timeout=0.3)
    eventually_sync(lambda: not inject(client, list=faults_pb2.ListRequest()))
    np.testing.assert_allclose(infer(client, images(2)), expected(images(2)), atol=1e-6)


def test_bitflip_flips_as_many_bits_as_it_says(client: Any) -> None:
    right = infer(client, images(2))
    inject(client, **fault(faults_pb2.BITFLIP, bits=3, seed=5))
    wrong = infer(client, images(2))
    difference = int.from_bytes(right.tobytes(), "little") ^ int.from_bytes(
        wrong.tobytes(), "little"
    )
    assert difference.bit_count() == 3
    np.testing.assert_array_equal(infer(client, images(2)), wrong, "repeatable by its seed")
    inject(client, clear=faults_pb2.ClearRequest())
    np.testing.assert_array_equal(infer(client, images(2)), right)


def test_what_clients_may_not_touch(client: Any) -> None:
    for touch in (client.unload_model, client.register_system_shared_memory):
        arguments = ("tiny", "/tiny", 64) if touch != client.unload_model else ("tiny",)
        with pytest.raises(InferenceServerException, match="expecting"):
            touch(*arguments)


def test_fault_requests_have_limits(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="ttl_ms is 0; the limits are 1 to 600000"):
        inject(client, **fault(faults_pb2.ERROR, ttl_ms=0))
    with pytest.raises(InferenceServerException, match="is not a proa"):
        client.infer("proa_faults", [tensor("request", np.full(3, 255, np.uint8))])


def test_nothing_was_logged_as_unexpected(worker: WorkerProcess) -> None:
    assert "Traceback" not in worker.log.read_text()
    assert worker.ready()

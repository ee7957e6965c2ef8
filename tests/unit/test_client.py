"""The SDK against a real gRPC server on loopback; each test runs on both clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

import proa.client
from fakes import oip_fake
from fakes.eventually import eventually
from fakes.oip_fake import FakeServer, serving
from proa import errors
from proa.client import (
    AsyncClient,
    BadAnswer,
    Client,
    DeadlinePassed,
    InvalidRequest,
    Overloaded,
    ProaError,
    RequestCancelled,
    TensorInfo,
    Unavailable,
    UnknownModel,
)


class Threaded:
    """The synchronous client with the methods of the other one: each call runs in a thread."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(getattr(self.client, name), *args, **kwargs)

        return call


Connect = Callable[..., Any]


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as server:
        yield server


@pytest.fixture(params=["async", "sync"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    """Makes clients of one kind, and closes them."""
    made: list[Any] = []

    def make(address: str, **options: Any) -> Any:
        if request.param == "async":
            made.append(AsyncClient(address, **options))
        else:
            made.append(Threaded(Client(address, **options)))
        return made[-1]

    yield make
    for client in made:
        await client.close()


def query(first: float, second: float = 0.5) -> np.ndarray[Any, Any]:
    return np.array([[first, second]], np.float32)


async def test_numpy_in_and_out_with_the_source(fake: FakeServer, connect: Connect) -> None:
    answer = await connect(fake.address).infer("double", {"x": query(3, 4)})
    assert np.array_equal(answer.only, [[6, 8]])
    assert answer.only.dtype == np.float32
    assert answer["y"] is answer.only
    assert (answer.source, answer.group, answer.worker) == ("worker", 7, "worker-1")
    assert (answer.model, answer.version, answer.reconstructed) == ("double", "2", False)
    with pytest.raises(InvalidRequest, match=r"no output 'z'.*\['y'\]"):
        answer["z"]


async def test_a_reconstructed_answer_says_so(fake: FakeServer, connect: Connect) -> None:
    answer = await connect(fake.address).infer("double", {"x": query(oip_fake.RECONSTRUCT)})
    assert (answer.source, answer.reconstructed, answer.worker) == ("reconstructed", True, None)


async def test_one_array_takes_the_name_of_the_only_input(
    fake: FakeServer, connect: Connect
) -> None:
    client = connect(fake.address)
    assert (await client.infer("double", query(1)))["y"][0, 0] == 2
    assert len(await client.infer_many("double", [query(1), {"x": query(2)}])) == 2
    assert fake.metadata_asked == 1
    assert [request.inputs[0].name for request in fake.requests] == ["x"] * 3
    with pytest.raises(InvalidRequest, match=r"\['a', 'b'\].*mapping"):
        await client.infer("sum", query(1))


async def test_options_travel_as_parameters(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address, exact=True, deadline_s=20.0)
    await client.infer("double", query(1), policy="hedge", version="2", outputs=["y"])
    asked = fake.requests[-1]
    assert asked.parameters["proa.exact"].bool_param is True
    assert asked.parameters["proa.policy"].string_param == "hedge"
    assert 0 < asked.parameters["timeout"].int64_param <= 20_000_000
    assert (asked.model_version, [o.name for o in asked.outputs]) == ("2", ["y"])
    await client.infer("double", query(1), exact=False, reconstruct=True)
    assert fake.requests[-1].parameters["proa.reconstruct"].bool_param is True
    await client.infer("double", query(1), exact=False, deadline_s=None)
    assert not fake.requests[-1].parameters


async def test_a_deadline_ends_the_call(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address)
    for deadline_s in (0.001, 0.05):
        with pytest.raises(DeadlinePassed):
            await client.infer("double", {"x": query(oip_fake.HANG)}, deadline_s=deadline_s)
    with pytest.raises(DeadlinePassed):
        await client.infer_many("double", [{"x": query(oip_fake.HANG)}], deadline_s=0.05)
    assert (await client.infer("double", {"x": query(1)}))["y"][0, 0] == 2


@pytest.mark.parametrize("deadline_s", [0, -1, 3601, float("nan")])
async def test_an_impossible_deadline_is_refused(
    fake: FakeServer, connect: Connect, deadline_s: float
) -> None:
    with pytest.raises(InvalidRequest, match="deadline_s"):
        await connect(fake.address).infer("double", {"x": query(1)}, deadline_s=deadline_s)
    with pytest.raises(InvalidRequest, match="deadline_s"):
        connect(fake.address, deadline_s=deadline_s)


async def test_errors_come_as_ours_and_chained(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address)
    with pytest.raises(InvalidRequest, match=r"input 'x': shape \[3\]") as refused:
        await client.infer("double", {"x": query(oip_fake.REFUSE)})
    assert isinstance(refused.value.__cause__, grpc.RpcError)
    with pytest.raises(Overloaded, match="the limit is 512") as overloaded:
        await client.infer("double", {"x": query(oip_fake.OVERLOAD)})
    assert overloaded.value.retry_after_s == 0.25
    with pytest.raises(UnknownModel, match="'triple'"):
        await client.infer("triple", {"x": query(1)})
    with pytest.raises(BadAnswer, match=r"output 'y': .* takes 8 bytes, got 3"):
        await client.infer("double", {"x": query(oip_fake.GARBLE)})


async def test_what_is_no_tensor_never_leaves(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address)
    with pytest.raises(InvalidRequest, match="'x' is a list, not a numpy array"):
        await client.infer("double", {"x": [1.0, 2.0]})
    with pytest.raises(InvalidRequest, match="not list"):
        await client.infer("double", [1.0, 2.0])
    with pytest.raises(InvalidRequest, match="complex64"):
        await client.infer_many("double", [{"x": query(1)}, {"x": query(1).astype("complex64")}])
    with pytest.raises(InvalidRequest, match="inflight_max 0"):
        await client.infer_many("double", [{"x": query(1)}], inflight_max=0)
    assert fake.requests == []


async def test_too_long_a_message_is_named(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address, message_bytes_max=1000)
    with pytest.raises(InvalidRequest, match="larger than max"):
        await client.infer("double", {"x": np.zeros((1, 1000), np.float32)})


async def test_nobody_there(connect: Connect) -> None:
    client = connect("127.0.0.1:9", deadline_s=5.0)  # the discard port: nothing listens
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        await client.infer("double", {"x": query(1)})
    with pytest.raises(Unavailable):
        await client.infer_many("double", [{"x": query(1)}])
    assert await client.is_ready() is False
    with pytest.raises(InvalidRequest, match="not host:port"):
        connect("unix:/tmp/socket")


async def test_many_queries_on_one_stream_matched_by_id(connect: Connect) -> None:
    async with serving(FakeServer(reorder=5)) as fake:
        client = connect(fake.address, policy="parity", deadline_s=20.0)
        queries = [{"x": query(i)} for i in range(23)]
        answers = await client.infer_many("double", queries, inflight_max=8)
        assert [answer["y"][0, 0] for answer in answers] == [2 * i for i in range(23)]
        assert all(answer.source == "worker" for answer in answers)
        assert 5 <= fake.open_max <= 8
        for request in fake.requests:
            assert request.parameters["proa.policy"].string_param == "parity"
            assert 0 < request.parameters["timeout"].int64_param <= 20_000_000
        assert await client.infer_many("double", []) == []


async def test_a_failed_query_ends_the_batch_or_stands_in_its_place(
    fake: FakeServer, connect: Connect
) -> None:
    client = connect(fake.address)
    firsts = [1, oip_fake.OVERLOAD, 2, oip_fake.REFUSE, 3]
    queries = [{"x": query(first)} for first in firsts]
    with pytest.raises(Overloaded, match="the limit is 512") as overloaded:
        await client.infer_many("double", queries)
    assert overloaded.value.retry_after_s == 0.25
    found = await client.infer_each("double", queries)
    assert [type(one).__name__ for one in found] == [
        *("Answer", "Overloaded", "Answer", "InvalidRequest", "Answer")
    ]
    assert found[4]["y"][0, 0] == 6


async def test_an_early_error_cancels_the_stream(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address)
    firsts = [oip_fake.REFUSE, oip_fake.HANG, *range(50)]
    with pytest.raises(InvalidRequest):
        await client.infer_many("double", [{"x": query(f)} for f in firsts], inflight_max=2)
    await eventually(lambda: fake.streams_open == 0)
    assert len(fake.requests) <= 4


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (oip_fake.ANONYMOUS, "the stream is tired"),
        (oip_fake.VANISH, "ended with 1 of 2 queries unanswered"),
        (oip_fake.STRANGE, "id '12345', for which nothing waits"),
        (oip_fake.GARBLE, "takes 8 bytes, got 3"),
    ],
)
async def test_a_stream_that_misbehaves_is_a_bad_answer(
    fake: FakeServer, connect: Connect, first: float, message: str
) -> None:
    client = connect(fake.address)
    for method in (client.infer_many, client.infer_each):
        with pytest.raises(BadAnswer, match=message):
            await method("double", [{"x": query(1)}, {"x": query(first)}])


async def test_models_metadata_and_readiness(fake: FakeServer, connect: Connect) -> None:
    client = connect(fake.address)
    models = await client.models()
    assert [(m.name, m.version, m.ready, m.reason) for m in models] == [
        ("double", "2", True, ""),
        ("sum", "1", False, "loading"),
    ]
    metadata = await client.metadata("double")
    assert metadata.versions == ("1", "2")
    assert metadata.inputs == (TensorInfo("x", "FP32", (-1, 2)),)
    assert [await client.is_ready(name) for name in (None, "double", "triple")] == [
        True,
        True,
        False,
    ]
    fake.ready = False
    assert await client.is_ready() is False
    with pytest.raises(UnknownModel):
        await client.metadata("triple")


async def test_closing_ends_calls_under_way_and_later_ones(
    fake: FakeServer, connect: Connect
) -> None:
    client = connect(fake.address)
    calls = [
        asyncio.create_task(client.infer("double", {"x": query(oip_fake.HANG)})),
        asyncio.create_task(client.infer_many("double", [{"x": query(oip_fake.HANG)}])),
    ]
    await eventually(lambda: len(fake.requests) == 2)
    await client.close()
    for call in calls:
        with pytest.raises(RequestCancelled):
            await call
    with pytest.raises(RuntimeError, match="closed"):
        await client.infer("double", {"x": query(1)})
    await client.close()


async def test_cancelling_a_task_cancels_its_call(fake: FakeServer) -> None:
    async with AsyncClient(fake.address) as client:
        call = asyncio.create_task(client.infer_many("double", [{"x": query(oip_fake.HANG)}]))
        await eventually(lambda: fake.requests and fake.streams_open == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: fake.streams_open == 0)


async def test_many_tasks_and_many_threads_share_a_client(
    fake: FakeServer, connect: Connect
) -> None:
    client = connect(fake.address)
    answers = await asyncio.gather(*(client.infer("double", {"x": query(i)}) for i in range(20)))
    assert [answer["y"][0, 0] for answer in answers] == [2 * i for i in range(20)]


async def test_the_sync_client_is_a_context_manager(fake: FakeServer) -> None:
    def work() -> float:
        with Client(fake.address) as client:
            return float(client.infer("double", query(4)).only[0, 0])

    assert await asyncio.to_thread(work) == 8.0


def test_the_drawn_tree_is_the_exported_one() -> None:
    drawn = proa.client.__doc__ or ""
    for name in proa.client.__all__:
        value = getattr(proa.client, name)
        if isinstance(value, type) and issubclass(value, ProaError):
            assert value is getattr(errors, name)
            assert name in drawn

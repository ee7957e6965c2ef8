"""Pushing to agents that refuse: what cannot pass is said at once, the rest is tried again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
import pytest

from proa import rpc
from proa.api.v1 import store_pb2, store_pb2_grpc
from proa.errors import (
    DataLost,
    InvalidRequest,
    NotSupported,
    Overloaded,
    PermissionDenied,
    ProaError,
    PushIndeterminate,
    ShardUnavailable,
    Unauthenticated,
)
from proa.store import wire
from proa.store.optimisers import SGD
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap, ShardEntry
from proa.store.pushing import Pusher, Who, check_sizes, parts_of
from proa.store.tables import Catalogue, Table
from proa.store.told import Told

MIB, SHARDS, ROWS = 1 << 20, 3, 96
CATALOGUE = Catalogue.new(2, 1, ["a", "b", "c"]).add(Table("t", ROWS, 4, SGD(0.1)))
EVERY = np.arange(ROWS)
Code = grpc.StatusCode


class Agent(store_pb2_grpc.StorePeerServicer):
    """Answers with what it is told to, then acknowledges."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.taken = 0

    async def PushBlocks(self, request: Any, context: Any) -> Any:
        answer = self.answers.pop(0) if self.answers else store_pb2.PushBlocksResponse()
        if isinstance(answer, Exception):
            await rpc.refuse(context, answer, "test")
        if isinstance(answer, tuple):
            await context.abort(*answer)
        self.taken += not answer.HasField("refused")
        return answer


class Maps:
    """Nothing changes."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def hurry(self) -> None: ...

    async def fresh(self, _deadline: float) -> Told:
        return self.told


class Store:
    """Agents of all shards, and a pusher that knows them."""

    def __init__(self, agents: list[Agent], pusher: Pusher, told: Told) -> None:
        self.agents, self.pusher, self.told = agents, pusher, told

    async def push(self, ids: Any = EVERY, *, limit_s: float = 5.0) -> None:
        gradients = {"t": (ids, np.ones((len(ids), 4), np.float32))}
        parts = parts_of(CATALOGUE, gradients, everywhere=False)
        deadline = asyncio.get_running_loop().time() + limit_s
        await self.pusher.push(self.told, Who(1, 7, lambda: 7), parts, deadline, None)


@contextlib.asynccontextmanager
async def started(message_bytes_max: int = MIB) -> AsyncIterator[Store]:
    agents, servers, addresses = [Agent() for _ in range(SHARDS)], [], []
    for agent in agents:
        server = grpc.aio.server(options=rpc.server_options(message_bytes_max))
        store_pb2_grpc.add_StorePeerServicer_to_server(agent, server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    shards = {shard: ShardEntry(1, True, "d", 1, 1) for shard in range(SHARDS)}
    told = Told("s", ClusterMap(1, shards), CATALOGUE, tuple(addresses), (), 1e18)
    channels = rpc.Channels(message_bytes_max=MIB)
    try:
        yield Store(agents, Pusher(channels, Maps(told)), told)  # type: ignore[arg-type]
    finally:
        await channels.close()
        await asyncio.gather(*(server.stop(None) for server in servers))


def refused(why: str) -> store_pb2.PushBlocksResponse:
    found = store_pb2.PushBlocksResponse()
    found.refused.why, found.refused.step = why, 7
    if why == "DATA_LOST":
        found.refused.lost.add()
    return found


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (InvalidRequest("worker = 9: of 2"), InvalidRequest, "step 7, shard 0: worker = 9: of 2"),
        (Unauthenticated("no certificate"), Unauthenticated, "no certificate"),
        (PermissionDenied("not you"), PermissionDenied, "not you"),
        ((Code.UNIMPLEMENTED, "no such method"), NotSupported, "no such method"),
    ],
)
async def test_what_cannot_pass_is_said_at_once(answer: Any, error: Any, said: str) -> None:
    async with started() as store, asyncio.timeout(20):
        store.agents[0].answers = [answer]
        with pytest.raises(error, match=said) as caught:
            await store.push(limit_s=60)
    assert type(caught.value) is error


async def test_a_message_above_the_agents_limit_is_said_at_once() -> None:
    async with started(message_bytes_max=400) as store, asyncio.timeout(20):
        with pytest.raises(
            InvalidRequest, match=r"larger than max .*400.*PROA_STORE_MESSAGE_BYTES_MAX"
        ):
            await store.push(limit_s=60)


@pytest.mark.parametrize(
    "answer",
    [
        (Code.UNAVAILABLE, "gone"),
        (Code.CANCELLED, "stops"),
        (Code.INTERNAL, "internal error"),
        (Code.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"),
        refused("STALE_MAP"),
        refused("OVERLOADED"),
    ],
)
async def test_what_can_pass_is_tried_again(answer: Any) -> None:
    async with started() as store:
        store.agents[1].answers = [answer, answer]
        await store.push()
        assert [agent.taken for agent in store.agents] == [1, 1, 1]


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        # Whether a call that was not answered was written is not known, whatever comes after it.
        ([(Code.UNAVAILABLE, "gone"), PermissionDenied("not you")], PushIndeterminate),
        ([(Code.RESOURCE_EXHAUSTED, "full")], Overloaded),
        ([(Code.UNAVAILABLE, "gone")], PushIndeterminate),
        ([refused("STALE_MAP")], ShardUnavailable),
    ],
)
async def test_the_error_says_whether_it_may_have_been_written(
    answers: list[Any], error: type[ProaError]
) -> None:
    async with started() as store:
        one = next(one for one in CATALOGUE.locate("t", EVERY))
        shard = CATALOGUE.layout.shard_of(*one.block)
        store.agents[shard].answers = answers + answers[-1:] * 1000
        with pytest.raises(error) as caught:
            await store.push(EVERY[one.where], limit_s=0.4)
        assert type(caught.value) is error


async def test_a_refusal_counts_when_all_shards_have_settled() -> None:
    """A caller that is told of lost rows takes it that the other rows were written."""
    async with started() as store:
        store.agents[0].answers = [refused("DATA_LOST")]
        with pytest.raises(DataLost):
            await store.push()
        store.agents[0].answers = [refused("DATA_LOST")]
        store.agents[1].answers = [refused("STALE_MAP")] * 1000
        with pytest.raises(PushIndeterminate, match=r"STALE_MAP.*other shards"):
            await store.push(limit_s=0.4)


def test_a_part_above_the_message_limit_names_it() -> None:
    parts = parts_of(CATALOGUE, {"t": (EVERY, np.ones((ROWS, 4), np.float32))}, everywhere=True)
    check_sizes(parts, MIB)
    with pytest.raises(InvalidRequest, match=r"rows for shard 0 .*message_bytes_max = 512"):
        check_sizes(parts, 512)
    # What it lets through, gRPC lets through.
    for shard, some in parts.items():
        push = ms.Push(1 << 61, 1 << 61, 1 << 61, 1 << 61, tuple(some))
        request = store_pb2.PushBlocksRequest(
            push=wire.to_proto(push).push, session=1 << 61, members=4096, process=1 << 61
        )
        with pytest.raises(InvalidRequest):
            check_sizes({shard: some}, request.ByteSize() - 1)

"""Faults in our own services act on calls, end by themselves, and can be cleared."""

from __future__ import annotations

import asyncio

import pytest

from fakes.eventually import eventually
from proa.api.v1 import faults_pb2
from proa.errors import InvalidRequest, NotSupported, Overloaded, ProaError, Unavailable
from proa.runtime.faults import FAULTS_MAX, FaultInterceptor, FaultService, FaultTable


def fault(kind, **fields):
    return faults_pb2.Fault(**{"id": "a", "ttl_ms": 60_000, "kind": kind, **fields})


@pytest.fixture
async def table():
    table = FaultTable()
    yield table
    table.clear()


def act(table, method="InferParity"):
    return asyncio.ensure_future(table.act(method))


async def test_no_fault_no_effect(table):
    await table.act("InferParity")


async def test_error_until_cleared(table):
    table.inject(fault(faults_pb2.ERROR))
    with pytest.raises(Unavailable, match="injected fault a"):
        await table.act("InferParity")
    table.clear("other")
    table.clear("a")
    await table.act("InferParity")


async def test_only_the_method_it_names(table):
    table.inject(fault(faults_pb2.ERROR, program="Decode"))
    await table.act("InferParity")
    with pytest.raises(Unavailable):
        await table.act("Decode")


async def test_the_time_to_live_ends_a_pause_with_nobody_alive(table):
    table.inject(fault(faults_pb2.PAUSE, ttl_ms=50))
    call = act(table)
    assert not call.done()
    await asyncio.wait_for(call, 5)
    assert not table.reply().active


async def test_clear_ends_a_pause_and_a_delay(table):
    table.inject(fault(faults_pb2.PAUSE))
    table.inject(fault(faults_pb2.DELAY, id="b", delay_ms=60_000))
    call = act(table)
    await asyncio.sleep(0)
    table.clear()
    await asyncio.wait_for(call, 5)


async def test_a_delay_delays(table):
    table.inject(fault(faults_pb2.DELAY, delay_ms=30))
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.wait_for(table.act("InferParity"), 5)
    assert loop.time() - start >= 0.029


async def test_a_dropped_call_is_never_answered_and_others_go_on(table):
    table.inject(fault(faults_pb2.DROP, ttl_ms=20))
    call = act(table)
    await eventually(lambda: not table.reply().active)
    assert not call.done()
    await table.act("InferParity")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_probability_is_seeded(table):
    async def hits():
        table.inject(fault(faults_pb2.ERROR, probability=0.5, seed=3))
        found = []
        for _ in range(40):
            try:
                await table.act("InferParity")
            except Unavailable:
                found.append(True)
            else:
                found.append(False)
        return found

    first = await hits()
    assert first == await hits()
    assert 8 < sum(first) < 32


async def test_a_fault_of_the_same_id_is_replaced(table):
    table.inject(fault(faults_pb2.PAUSE))
    call = act(table)
    await asyncio.sleep(0)
    table.inject(fault(faults_pb2.ERROR))
    await asyncio.wait_for(call, 5)
    assert [one.kind for one in table.reply().active] == [faults_pb2.ERROR]


async def test_the_number_of_faults_is_bounded(table):
    for i in range(FAULTS_MAX):
        table.inject(fault(faults_pb2.ERROR, id=str(i)))
    with pytest.raises(Overloaded, match="16 faults are active"):
        table.inject(fault(faults_pb2.ERROR, id="more"))
    table.inject(fault(faults_pb2.DROP, id="3"))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (fault(faults_pb2.BITFLIP, bits=1), NotSupported, "BITFLIP acts on workers"),
        (fault(faults_pb2.FAULT_KIND_UNSPECIFIED), InvalidRequest, "kind 0 is not one of"),
        (fault(9), InvalidRequest, "kind 9 is not one of"),
        (fault(faults_pb2.ERROR, ttl_ms=0), InvalidRequest, "ttl_ms is 0; the limits are 1"),
        (fault(faults_pb2.ERROR, ttl_ms=600_001), InvalidRequest, "ttl_ms is 600001"),
        (fault(faults_pb2.DELAY), InvalidRequest, "delay_ms is 0; the limits are 1"),
        (fault(faults_pb2.ERROR, id=""), InvalidRequest, "length of id is 0"),
        (fault(faults_pb2.ERROR, id="x" * 65), InvalidRequest, "length of id is 65"),
        (fault(faults_pb2.ERROR, program="x" * 65), InvalidRequest, "length of program is 65"),
        (fault(faults_pb2.ERROR, probability=1.5), InvalidRequest, "probability is 1.5"),
        (fault(faults_pb2.ERROR, probability=float("nan")), InvalidRequest, "probability is nan"),
    ],
)
async def test_a_bad_fault_is_refused(table, bad, error, message):
    with pytest.raises(ProaError, match=message) as caught:
        table.inject(bad)
    assert type(caught.value) is error
    assert not table.reply().active


class Actor:
    kinds = frozenset({faults_pb2.BITFLIP})

    def __init__(self):
        self.seen = []
        self.error = None

    async def begin(self, fault):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.seen.append(("begin", fault.id, fault.bits))

    def ended(self, fault):
        self.seen.append(("end", fault.id, fault.bits))


async def test_an_actor_acts_out_each_of_its_faults_once():
    actor = Actor()
    table = FaultTable(actor)
    one = fault(faults_pb2.BITFLIP, bits=1)
    await asyncio.gather(*(table.begin(one) for _ in range(3)))
    assert actor.seen == [("begin", "a", 1)]
    await table.begin(fault(faults_pb2.BITFLIP, bits=2))  # another one of that id
    table.clear()
    assert actor.seen[1:] == [("begin", "a", 2), ("end", "a", 1), ("end", "a", 2)]
    await table.begin(fault(faults_pb2.BITFLIP, ttl_ms=20))
    await eventually(lambda: actor.seen[-1] == ("end", "a", 0))
    await table.begin(fault(faults_pb2.ERROR))
    assert len(actor.seen) == 6
    with pytest.raises(Unavailable):
        await table.act("Decode")
    table.clear()


async def test_what_an_actor_refuses_is_not_active():
    actor = Actor()
    actor.error = Overloaded("enough")
    table = FaultTable(actor)
    with pytest.raises(Overloaded, match="enough"):
        await table.begin(fault(faults_pb2.BITFLIP))
    with pytest.raises(InvalidRequest, match="ttl_ms is 0"):
        await table.begin(fault(faults_pb2.BITFLIP, ttl_ms=0))
    with pytest.raises(NotSupported, match="STALE_DISK acts on agents"):
        await table.begin(fault(faults_pb2.STALE_DISK))
    assert (actor.seen, len(table.reply().active)) == ([], 0)


async def test_the_interceptor_leaves_other_services_alone(table):
    interceptor = FaultInterceptor(table, "proa.api.v1.Encoder")

    class Details:
        method = "/grpc.health.v1.Health/Check"

    handler = object()

    async def continuation(_details):
        return handler

    assert await interceptor.intercept_service(continuation, Details()) is handler


async def test_the_service_answers_with_the_active_faults(table):
    service = FaultService(table)
    one = fault(faults_pb2.DROP, program="Decode")
    assert (await service.Inject(faults_pb2.InjectRequest(fault=one), None)).active == [one]
    assert (await service.List(faults_pb2.ListRequest(), None)).active == [one]
    assert (await service.Clear(faults_pb2.ClearRequest(id="a"), None)).active == []

"""In-band faults of a run: put into a real service, listed, cleared, and ended by their time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fakes.eventually import eventually
from proa.api.v1 import faults_pb2
from proa.decoder.main import serve_decoder
from proa.decoder.settings import DecoderSettings
from proa.errors import DeadlinePassed, EnvironmentLacks, NotSupported, Unavailable
from proa.rpc import Channels
from proa.runtime.faults import FaultTable
from proa_chaos.experiment import Choice, Fault, Parameters
from proa_chaos.inband import InBand, acting, check
from proa_chaos.plan import Hit
from proa_chaos.selection import ROLE, Target


def hit(target: Target, action: str = "slow", number: int = 0, **parameters: object) -> Hit:
    fault = Fault("f", action, Choice(), parameters=Parameters(**parameters))  # type: ignore[arg-type]
    return Hit(f"{number}.0", fault, target, 0.0, 1.0)


@asynccontextmanager
async def decoder(*, faults: bool) -> AsyncIterator[Target]:
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    settings = DecoderSettings(host="127.0.0.1", port=0, admin_port=0, faults=faults)
    task = asyncio.create_task(serve_decoder(settings, listening=listening))
    try:
        port, _ = await listening
        yield Target("decoder", "decoder", f"127.0.0.1:{port}", labels={ROLE: "decoder"})
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def make() -> AsyncIterator[Callable[[str], InBand]]:
    channels = Channels(message_bytes_max=1 << 20)
    yield lambda prefix: InBand(channels, prefix, 7)
    await channels.close()


async def test_a_fault_is_injected_listed_and_cleared(make):
    ours, theirs = make("ours"), make("theirs")
    async with decoder(faults=True) as target:
        slow = hit(target, delay_ms=30, probability=0.5, program="Decode")
        await ours.inject(slow, 60.0)
        await theirs.inject(hit(target, "error"), 60.0)
        found = {fault.id: fault for fault in await ours.active(target)}
        assert found.keys() == {"ours-0.0", "theirs-0.0"}
        assert found["ours-0.0"].kind == faults_pb2.DELAY
        assert (found["ours-0.0"].delay_ms, found["ours-0.0"].program) == (30, "Decode")
        await ours.clear(slow)
        await ours.clear(slow)  # no error
        assert [fault.id for fault in await ours.active(target)] == ["theirs-0.0"]


async def test_a_fault_ends_by_itself(make):
    one = make("one")
    async with decoder(faults=True) as target:
        await one.inject(hit(target, delay_ms=30), 0.3)
        assert len(await one.active(target)) == 1
        active = []

        async def look() -> None:
            while True:
                active[:] = await one.active(target)
                await asyncio.sleep(0.02)

        looking = asyncio.create_task(look())
        active.append("not looked yet")
        await eventually(lambda: not active)
        looking.cancel()


async def test_a_process_without_fault_injection_says_what_to_do(make):
    async with decoder(faults=False) as target:
        with pytest.raises(EnvironmentLacks, match=r"decoder takes no faults .*proa up --faults"):
            await make("one").active(target)


async def test_nobody_there_is_an_error(make):
    nobody = Target("decoder", "decoder", "127.0.0.1:1", labels={ROLE: "decoder"})
    with pytest.raises(Unavailable):
        await make("one").active(nobody)


def test_a_partition_acts_at_the_frontend_whichever_side_it_is():
    frontend = Target("frontend", "frontend", labels={ROLE: "frontend"})
    worker = Target("worker-0", "worker-0", labels={ROLE: "worker"})
    cut = Fault("cut", "partition", Choice(), peer=Choice())
    assert acting(Hit("0.0", cut, worker, 0.0, 1.0, frontend)) == frontend
    assert acting(Hit("0.0", cut, frontend, 0.0, 1.0, worker)) == frontend
    with pytest.raises(NotSupported, match="one side of a partition must be a frontend"):
        acting(Hit("0.0", cut, worker, 0.0, 1.0, worker))


@pytest.mark.parametrize(
    ("action", "role", "words"),
    [
        ("bitflip", "decoder", "only workers have outputs"),
        ("slow", "frontend", "a frontend takes partition"),
        ("melt", "worker", "cannot be done here"),
    ],
)
def test_what_a_target_cannot_act_out_is_refused(action, role, words):
    with pytest.raises(NotSupported, match=words):
        check(hit(Target("x", "x", labels={ROLE: role}), action))


async def test_a_cut_network_loses_the_calls_to_one_peer():
    table = FaultTable()
    await table.reach("worker-1", 0.05)
    table.inject(
        faults_pb2.Fault(id="cut", kind=faults_pb2.DROP, ttl_ms=60_000, program="worker-1")
    )
    await table.reach("worker-0", 0.05)
    with pytest.raises(DeadlinePassed, match="worker-1: no answer within"):
        await table.reach("worker-1", 0.05)
    table.clear()
    await table.reach("worker-1", 0.05)

"""A rolling update: workers of two packages side by side."""

from __future__ import annotations

import contextlib
from collections import defaultdict

import numpy as np

from fakes.cluster import Load, frontend, until, write_spec
from fakes.source_fake import FakeSource, worker
from fakes.triton_fake import FakeTriton, linear
from proa.cluster.endpoints import DRAINING

EAGER = "patience: first, groupMsMax: 2, idleReserve: 0"


async def become(found, **wanted):
    async def as_wanted():
        return {w.name: w.state.partition(":")[0] for w in (await found.status()).workers} == wanted

    await until(as_wanted)


class Fleet:
    """Workers a0, a1 and on of package A; b0 and on of package B, whose model answers twice as
    much. Mixed, a reconstruction would be neither model's answer."""

    def __init__(self, count):
        self.fakes = {f"a{i}": FakeTriton(package="aaaa", service_s=0.002) for i in range(count)}
        for i in range(count):
            fake = FakeTriton(package="bbbb", service_s=0.002)
            fake.change = lambda answer: 2 * answer
            self.fakes[f"b{i}"] = fake
        for fake in self.fakes.values():  # one that is always late would be avoided
            fake.delay_s, fake.delay_each = 0.04, 3
        self.source = FakeSource()
        self.states = {}

    def set(self, **states):
        """Add workers, change their states; None: gone."""
        self.states = {n: s for n, s in {**self.states, **states}.items() if s is not None}
        self.source.set(
            *(worker(name, self.fakes[name], state=state) for name, state in self.states.items())
        )


def check(answers):
    """Every answer is that of one of the two models, and of the worker's own where it has one."""
    packages = defaultdict(set)
    sources = defaultdict(int)
    for image, answer in answers:
        want = linear(image)
        is_a = np.allclose(answer["logits"], want, rtol=1e-3, atol=1e-3)
        is_b = np.allclose(answer["logits"], 2 * want, rtol=1e-3, atol=1e-3)
        assert is_a or is_b, answer.source
        sources[answer.source, "A" if is_a else "B"] += 1
        if answer.worker is not None:
            assert answer.worker[0] == ("a" if is_a else "b")
        if answer.group is not None and answer.source in ("worker", "reconstructed"):
            packages[answer.group].add(is_a)
    assert all(len(found) == 1 for found in packages.values()), "a group mixes packages"
    return sources


async def test_a_rolling_update_loses_nothing_and_mixes_nothing(tmp_path):
    count = 4
    fleet = Fleet(count)
    async with contextlib.AsyncExitStack() as stack:
        for fake in fleet.fakes.values():
            await stack.enter_async_context(fake)
        fleet.set(**{f"a{i}": "ready" for i in range(count)})
        path = write_spec(tmp_path, f"policy: parity, {EAGER}", latency_ms=10)
        found = await stack.enter_async_context(frontend(source=fleet.source, specs=str(path)))
        await become(found, **dict.fromkeys(fleet.states, "up"))
        async with Load(found.address, clients=6) as load:
            await load.more(60)
            for i in range(count):
                fleet.set(**{f"b{i}": "ready"})
                await become(found, **dict.fromkeys(fleet.states, "up"))
                await load.more(40)
                fleet.set(**{f"a{i}": DRAINING})
                staying = [name for name, state in fleet.states.items() if state == "ready"]
                await become(found, **dict.fromkeys(staying, "up"))
                await fleet.fakes[f"a{i}"].stop()
                fleet.set(**{f"a{i}": None})
            await load.more(60)
        assert load.errors == []
    sources = check(load.answers)
    assert sources["reconstructed", "A"] > 0
    assert sources["reconstructed", "B"] > 0
    assert sources["worker", "A"] > 0
    assert sources["worker", "B"] > 0

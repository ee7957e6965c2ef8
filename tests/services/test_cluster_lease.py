"""A Lease as a mutex over HTTP: two contenders, a holder that dies, trouble with the API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes.clock import ManualClock
from fakes.eventually import eventually
from fakes.kube_fake import FakeKube, fake_kube, kubeconfig, refusal
from proa.cluster import Lease, LeaseTimes
from proa.cluster.api import ApiAccess
from proa.cluster.connection import ApiError
from proa.cluster.retry import Retry
from proa.errors import DeadlinePassed

TIMES = LeaseTimes(duration_s=30, renew_s=8.0, poll_s=2.0)


class Worker:
    """One that wants the Lease, on a clock that the test moves."""

    def __init__(self, name: str, access: ApiAccess, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock()
        self.errors: list[str] = []
        self.inside = asyncio.Event()
        self.leave = asyncio.Event()
        self.lost: asyncio.Event | None = None
        self.lease = Lease(
            access,
            name="restart",
            holder=name,
            on_error=self.errors.append,
            times=TIMES,
            retry=Retry(first_s=0.5, most_s=5.0),
            clock=self.clock.now,
            pause=self.clock.pause,
        )
        self.task: asyncio.Task[None] | None = None

    def start(self, acquire_s: float | None = None) -> Worker:
        self.task = asyncio.create_task(self._run(acquire_s))
        return self

    async def _run(self, acquire_s: float | None) -> None:
        async with self.lease.held(acquire_s) as self.lost:
            self.inside.set()
            await self.leave.wait()

    async def enters(self) -> None:
        await eventually(lambda: self.inside.is_set() or (self.task and self.task.done()))
        assert self.inside.is_set(), self.task

    async def done(self) -> None:
        self.leave.set()
        assert self.task is not None
        await asyncio.wait_for(self.task, 10)

    async def dies(self) -> None:
        """As a process does: nothing is released. Here by a server that hears nothing more."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
async def kube() -> AsyncIterator[FakeKube]:
    async with fake_kube() as found:
        yield found


@pytest.fixture
def access(kube: FakeKube, tmp_path: Path) -> ApiAccess:
    return kubeconfig(tmp_path, str(kube.url))


def spec(kube: FakeKube) -> dict[str, Any]:
    return kube.objects["leases", "restart"]["spec"]  # type: ignore[no-any-return]


async def test_one_after_the_other(kube: FakeKube, access: ApiAccess) -> None:
    a, b = Worker("a", access), Worker("b", access)
    a.start()
    await a.enters()
    assert spec(kube)["holderIdentity"] == "a"
    b.start()
    await b.clock.asleep(1)
    assert not b.inside.is_set()
    await a.done()
    assert "holderIdentity" not in spec(kube)
    b.clock.advance(TIMES.poll_s)
    await b.enters()
    assert (spec(kube)["holderIdentity"], spec(kube)["leaseTransitions"]) == ("b", 1)
    await b.done()
    assert a.errors == b.errors == []
    assert a.lost is not None
    assert not a.lost.is_set()


async def test_many_at_once_never_two_inside(kube: FakeKube, access: ApiAccess) -> None:
    workers = [Worker(f"w{i}", access).start() for i in range(5)]
    for _ in workers:
        await eventually(lambda: _tick(workers) and _inside(workers))
        (one,) = _inside(workers)
        assert spec(kube)["holderIdentity"] == f"w{workers.index(one)}"
        await one.done()
    assert kube.count("create") >= 1
    assert all(w.errors == [] for w in workers)


def _tick(workers: list[Worker]) -> bool:
    for worker in workers:
        if not worker.inside.is_set():
            worker.clock.advance(1.0)
    return True


def _inside(workers: list[Worker]) -> list[Worker]:
    return [w for w in workers if w.inside.is_set() and w.task and not w.task.done()]


async def test_a_holder_renews_and_outlasts_those_who_wait(
    kube: FakeKube, access: ApiAccess
) -> None:
    clock = ManualClock()
    a, b = Worker("a", access, clock).start(), Worker("b", access, clock)
    await a.enters()
    b.start()
    for _ in range(40):  # 80 s: more than twice the Lease's duration
        await clock.asleep(2)
        clock.advance(TIMES.poll_s)
    await clock.asleep(2)
    assert not b.inside.is_set()
    assert kube.count("update") == 10  # every 8 s
    await b.dies()
    await a.done()


async def test_a_dead_holder_is_followed_after_the_duration(
    kube: FakeKube, access: ApiAccess
) -> None:
    a, b = Worker("a", access).start(), Worker("b", access)
    await a.enters()
    kube.instead["get"] = [refusal(503, "away")]  # so that it cannot release
    await a.dies()
    assert spec(kube)["holderIdentity"] == "a"
    # Whatever its clock says: only that the Lease does not change counts.
    kube.put(_lease(holder="a", renewed="2099-01-01T00:00:00.000000Z"))
    b.start()
    for _ in range(14):
        await b.clock.asleep(1)
        b.clock.advance(TIMES.poll_s)
    await b.clock.asleep(1)
    assert not b.inside.is_set()  # 28 s
    b.clock.advance(TIMES.poll_s)
    await b.enters()  # 30 s
    assert spec(kube)["leaseTransitions"] == 4
    await b.done()


async def test_the_holders_duration_counts_and_every_change_starts_it_anew(
    kube: FakeKube, access: ApiAccess
) -> None:
    kube.put(_lease(holder="a", duration_s=3))
    b = Worker("b", access).start()
    await b.clock.asleep(1)
    b.clock.advance(2.0)
    kube.put(_lease(holder="a", duration_s=3))
    await b.clock.asleep(1)
    b.clock.advance(2.0)
    await b.clock.asleep(1)
    assert not b.inside.is_set()
    b.clock.advance(2.0)
    await b.enters()
    await b.done()


async def test_our_own_lease_from_before_a_restart_is_ours_at_once(
    kube: FakeKube, access: ApiAccess
) -> None:
    kube.put(_lease(holder="a"))
    a = Worker("a", access).start()
    await a.enters()
    assert spec(kube)["leaseTransitions"] == 3  # nobody else held it
    await a.done()


async def test_a_holder_that_cannot_renew_knows_it_before_others_take_over(
    kube: FakeKube, access: ApiAccess
) -> None:
    clock = ManualClock()
    a, b = Worker("a", access, clock).start(), Worker("b", access, clock)
    await a.enters()
    b.start()
    await clock.asleep(2)
    kube.instead["update"] = [refusal(500, "etcd is away") for _ in range(100)]
    assert a.lost is not None
    while not a.lost.is_set():
        assert not b.inside.is_set()
        clock.advance(0.5)
        await eventually(lambda: clock.sleeping == 2 or (a.lost and a.lost.is_set()))
    assert a.errors[-1] == "lease restart: lost, no renewal for too long"
    assert "500 etcd is away" in a.errors[0]
    kube.instead.clear()
    await eventually(lambda: clock.advance(1.0) or b.inside.is_set())
    await a.done()
    assert spec(kube)["holderIdentity"] == "b"  # a released nothing
    await b.done()


async def test_a_lease_that_was_taken_is_lost(kube: FakeKube, access: ApiAccess) -> None:
    a = Worker("a", access).start()
    await a.enters()
    await a.clock.asleep(1)
    kube.put(_lease(holder="b"))
    a.clock.advance(TIMES.renew_s)
    assert a.lost is not None
    await asyncio.wait_for(a.lost.wait(), 10)
    assert a.errors == ["lease restart: lost, somebody else took it"]
    await a.done()
    assert spec(kube)["holderIdentity"] == "b"


async def test_a_lease_that_was_only_touched_is_kept(kube: FakeKube, access: ApiAccess) -> None:
    a = Worker("a", access).start()
    await a.enters()
    await a.clock.asleep(1)
    touched = kube.objects["leases", "restart"]
    touched["metadata"]["annotations"] = {"someone": "was here"}
    kube.put(touched)
    a.clock.advance(TIMES.renew_s)
    await a.clock.asleep(1)
    a.clock.advance(0.5)
    await eventually(lambda: kube.count("update") == 2)
    await a.clock.asleep(1)
    assert a.lost is not None
    assert not a.lost.is_set()
    await a.done()
    assert kube.objects["leases", "restart"]["metadata"]["annotations"] == {"someone": "was here"}
    assert a.errors == []


@pytest.mark.parametrize("verb", ["get", "create", "update"])
async def test_missing_rbac_names_verb_and_resource_at_once(
    kube: FakeKube, access: ApiAccess, verb: str
) -> None:
    if verb == "update":
        kube.put(_lease(holder=""))
    kube.denied = {(verb, "leases")}
    a = Worker("a", access).start()
    assert a.task is not None
    with pytest.raises(
        ApiError, match=rf"may not {verb} leases \(API group coordination.k8s.io\) in namespace mod"
    ):
        await a.task


async def test_waiting_has_an_end_that_names_the_holder(kube: FakeKube, access: ApiAccess) -> None:
    kube.put(_lease(holder="b"))
    a = Worker("a", access).start(acquire_s=4.0)
    for _ in range(2):
        await a.clock.asleep(1)
        a.clock.advance(TIMES.poll_s)
    assert a.task is not None
    with pytest.raises(DeadlinePassed, match="lease restart: not ours after 4 s: b holds it"):
        await a.task


async def test_waiting_for_a_server_that_is_away_names_it(tmp_path: Path) -> None:
    a = Worker("a", kubeconfig(tmp_path, "http://127.0.0.1:1")).start(acquire_s=4.0)
    assert a.task is not None
    await eventually(lambda: a.clock.advance(0.5) or (a.task and a.task.done()))
    with pytest.raises(DeadlinePassed, match=r"the API server http://127.0.0.1:1: Connect"):
        await a.task
    assert len(a.errors) >= 2


async def test_an_overloaded_server_is_asked_again_when_it_says(
    kube: FakeKube, access: ApiAccess
) -> None:
    kube.instead["get"] = [refusal(429, "busy", Retry_After="9")]
    a = Worker("a", access).start()
    await a.clock.asleep(1)
    assert a.clock.asked == [9.0]
    a.clock.advance(9.0)
    await a.enters()
    await a.done()


def _lease(
    holder: str, *, duration_s: int = 30, renewed: str = "2020-01-01T00:00:00.000000Z"
) -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "restart"},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration_s,
            "leaseTransitions": 3,
            "renewTime": renewed,
        },
    }

"""ParityEmbeddingBag on a real store, against torch.nn.EmbeddingBag; states; what is under way."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading

import numpy as np
import pytest
import pytest_asyncio
import torch

from fakes.real_store import started, until, until_sync
from fakes.store_successor import is_stopped
from proa.embedding import ParityEmbeddingBag, PrefetchIter
from proa.embedding.store import ParityStore
from proa.local.store import StoreOptions, agent_name, server_name
from proa.store.initial import Initialiser
from proa.store.optimisers import SGD, LazyAdam, RowWiseAdagrad

pytestmark = [
    pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module"), pytest.mark.long
]  # fmt: skip

ROWS, DIM, STEPS = 500, 8, 12
_numbers = itertools.count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watch(tmp_path_factory):
    """k = 2, r = 1 on four shards."""
    options = StoreOptions(tmp_path_factory.mktemp("sx"), port=0, admin_port=0)
    async with started(options) as found:
        yield found


def new_bag(store, optimiser, name=None, **options):
    name = name or f"t{next(_numbers)}"
    init = Initialiser(seed=2)
    table = store.create_table(name, rows=ROWS, dim=DIM, optimiser=optimiser, init=init)
    return ParityEmbeddingBag(table, **options)


def batches(seed=0, shape=(16, 5), rows=ROWS):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(0, rows, shape, generator=draw) for _ in range(STEPS)]


def step(bag, ids, *more):
    """One step along the sum of squares; what `forward` gave."""
    found = bag(ids, *more)
    (found**2).sum().backward()
    bag.flush()
    return found.detach()


# --- against torch

OFFSETS = torch.tensor([0, 3, 3, 40, 61])
LAST = torch.tensor([0, 3, 3, 40, 61, 80])
CASES = {
    "sum": ({"mode": "sum"}, None, False),
    "mean": ({"mode": "mean"}, None, False),
    "max": ({"mode": "max"}, None, False),
    "sum offsets": ({"mode": "sum"}, OFFSETS, False),
    "mean offsets": ({"mode": "mean"}, OFFSETS, False),
    "max offsets": ({"mode": "max"}, OFFSETS, False),
    "last offset": ({"mode": "sum", "include_last_offset": True}, LAST, False),
    "weights": ({"mode": "sum"}, None, True),
    "weights, offsets": ({"mode": "sum"}, OFFSETS, True),
    "padding": ({"mode": "mean", "padding_idx": 3}, None, False),
    "frequency": ({"mode": "sum", "scale_grad_by_freq": True}, None, False),
}


@pytest.mark.parametrize("case", CASES)
async def test_it_is_an_embedding_bag(watch, case):
    """Results, and the table after training; many ids come twice in a batch and in a bag."""
    options, offsets, weighted = CASES[case]
    shape = (16, 5) if offsets is None else (80,)
    draw = torch.Generator().manual_seed(4)

    def train():
        with ParityStore(watch.address, timeout_s=60) as store:
            bag = new_bag(store, SGD(0.05), **options)
            twin = torch.nn.EmbeddingBag(ROWS, DIM, **options)
            twin.load_state_dict({"weight": bag.state_dict()["weight"]})
            optimiser = torch.optim.SGD(twin.parameters(), lr=0.05)
            for ids in batches(1, shape, rows=40):
                more = (torch.rand(shape, generator=draw) if weighted else None,)
                other = twin(ids, offsets, *more)
                optimiser.zero_grad()
                (other**2).sum().backward()
                optimiser.step()
                found = step(bag, ids, offsets, *more)
                torch.testing.assert_close(found, other.detach(), rtol=1e-5, atol=1e-6)
            weight = bag.state_dict()["weight"]
            torch.testing.assert_close(weight, twin.weight.detach(), rtol=1e-5, atol=1e-6)
            assert (weight[:40] != twin.weight.new_zeros(())).any()

    await asyncio.to_thread(train)


async def test_gradients_of_weights_are_those_of_torch(watch):
    def compare():
        with ParityStore(watch.address, timeout_s=60) as store:
            bag = new_bag(store, SGD(0.05), mode="sum")
            twin = torch.nn.EmbeddingBag(ROWS, DIM, mode="sum")
            twin.load_state_dict({"weight": bag.state_dict()["weight"]})
            weights = [torch.full((16, 5), 0.5, requires_grad=True) for _ in range(2)]
            for one, given in zip((bag, twin), weights, strict=True):
                (one(batches()[0], None, given) ** 2).sum().backward()
            torch.testing.assert_close(weights[0].grad, weights[1].grad)
            assert weights[0].grad.any()

    await asyncio.to_thread(compare)


# --- states


@pytest.mark.parametrize("shape", [{"k": 3, "r": 2, "shards": 5}, {"k": 1, "r": 1, "shards": 2}])
async def test_a_state_goes_to_a_store_of_another_shape(watch, tmp_path_factory, shape):
    """With the optimiser's state: both are trained on, and a server of the other one dies."""
    options = StoreOptions(tmp_path_factory.mktemp("sy"), port=0, admin_port=0, **shape)

    def here():
        with ParityStore(watch.address, timeout_s=60) as store:
            bag = new_bag(store, LazyAdam(0.02), mode="sum")
            for ids in batches(2):
                step(bag, ids)
            state = bag.state_dict()
            for ids in batches(3):
                step(bag, ids)
            return state, bag.state_dict()

    def there(state, address, name):
        with ParityStore(address, timeout_s=60) as store:
            bag = new_bag(store, LazyAdam(0.02), name, mode="sum")
            assert not torch.equal(bag.state_dict()["weight"], state["weight"])
            bag.load_state_dict(state)
            found = bag.state_dict()
            for ids in batches(3):
                step(bag, ids)
            return found, bag.state_dict()

    def again(address, name):
        with ParityStore(address, timeout_s=60) as store:
            return ParityEmbeddingBag(store.table(name), mode="sum").state_dict()

    state, trained = await asyncio.to_thread(here)
    assert set(state) == {"weight", "state.optimiser"}
    assert state["state.optimiser"].any()
    async with started(options) as other:
        found = await asyncio.to_thread(there, state, other.address, "u")
        assert [same(one) for one in found] == [same(state), same(trained)]
        await other.killed(server_name(1))
        assert same(await asyncio.to_thread(again, other.address, "u")) == same(trained)
        await other.whole()
        await other.audit()


def same(state):
    return {name: value.numpy().tobytes() for name, value in state.items()}


# --- what is under way


class Counting(ParityStore):
    """Counts pulls: those ahead, and those in `forward`."""

    ahead = 0
    rows_now = 0

    def begin_pull(self, asked):
        self.ahead += 1
        return super().begin_pull(asked)

    def pull(self, table, ids):
        self.rows_now += len(ids)
        return super().pull(table, ids)


async def test_prefetching_changes_no_bit(watch):
    """Rows that a step changes come again in the next batch: they are pulled again, the others
    are not."""

    def train(prefetch):
        with Counting(watch.address, timeout_s=60) as store:
            bags = [new_bag(store, RowWiseAdagrad(0.1), mode="sum") for _ in range(2)]
            for number, bag in enumerate(bags):  # initial values depend on the table's name
                draw = torch.Generator().manual_seed(number)
                bag.load_state_dict({"weight": torch.rand(ROWS, DIM, generator=draw)})
            pairs = list(zip(batches(5), batches(6, rows=60), strict=True))

            def inputs(pair):
                return zip(bags, pair, strict=True)

            losses = []
            for pair in PrefetchIter(pairs, inputs) if prefetch else pairs:
                found = [bag(ids) for bag, ids in inputs(pair)]
                loss = (torch.cat(found, 1) ** 2).sum()
                loss.backward()
                store.flush()
                losses.append(loss.item())
            states = [same(bag.state_dict()) for bag in bags]
            return losses, states, store.ahead, store.rows_now

    plain, ahead = [await asyncio.to_thread(train, prefetch) for prefetch in (False, True)]
    assert plain[:2] == ahead[:2]
    assert (plain[2], ahead[2]) == (0, STEPS)
    assert 0 < ahead[3] < plain[3] / 2


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_pushes_wait_than_they_may(watch, most):
    """One agent stands still. So many pushes return, and no more of them reach another shard, which
    acknowledges its parts of them once it waits for that agent no longer."""
    pushes, name, done = 2 * most + 4, f"t{next(_numbers)}", 0
    begun, go = threading.Event(), threading.Event()

    def push():
        nonlocal done
        with ParityStore(watch.address, timeout_s=90, inflight_max=most) as store:
            zeros = Initialiser(kind="zeros")
            table = store.create_table(name, rows=ROWS, dim=DIM, optimiser=SGD(1.0), init=zeros)
            ids, ones = np.arange(ROWS), np.ones((ROWS, DIM), np.float32)
            table.push(ids, ones)
            table.flush()
            begun.set()
            go.wait(90)
            for _ in range(pushes):
                table.push(ids, ones)
                done += 1
            store.flush()
            return table.pull(ids)

    async def acknowledged():
        return (await watch.report()).shards[0].pushes

    pushing = asyncio.create_task(asyncio.to_thread(push))
    await until_sync(lambda: begun.is_set() or pushing.done())
    pid, before = watch.pid(agent_name(1)), await acknowledged()
    watch.supervisor.kill(agent_name(1), signal.SIGSTOP)
    try:
        await until_sync(lambda: is_stopped(pid))
        go.set()

        async def follows():
            return await acknowledged() >= before + most

        await until(follows)
        assert await acknowledged() == before + most
        assert done == most
        assert is_stopped(pid), "too slow: it was killed for being frozen"
    finally:
        watch.supervisor.kill(agent_name(1), signal.SIGCONT)
    found = await pushing
    assert done == pushes
    assert (found == -(pushes + 1)).all()

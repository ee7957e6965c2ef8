"""ParityEmbeddingBag against torch.nn.EmbeddingBag: results, gradients, errors, state_dict."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from proa.embedding import ParityEmbeddingBag, PrefetchIter, pull_ahead
from proa.errors import InvalidRequest, NotSupported

ROWS, DIM, LR = 23, 5, 0.1


class MemoryStore:
    """Counts what is pulled together."""

    def __init__(self) -> None:
        self.tables: dict[str, MemoryTable] = {}
        self.together: list[list[str]] = []

    def begin_pull(self, asked: Mapping[str, np.ndarray]) -> Future[dict[str, np.ndarray]]:
        self.together.append(list(asked))
        found: Future[dict[str, np.ndarray]] = Future()
        found.set_result({name: self.tables[name].pull(ids) for name, ids in asked.items()})
        return found


class MemoryTable:
    """A table of this process, with plain SGD."""

    rows, dim = ROWS, DIM

    def __init__(self, name: str = "t", store: MemoryStore | None = None) -> None:
        self.name, self.store = name, store or MemoryStore()
        self.store.tables[name] = self
        self.weight = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
        self.pulled: list[list[int]] = []
        self.pushed: list[list[int]] = []
        self.gradients: list[np.ndarray] = []

    def pull(self, ids: np.ndarray) -> np.ndarray:
        assert (np.diff(ids) > 0).all()
        self.pulled.append(ids.tolist())
        return self.weight[ids]

    def push(self, ids: np.ndarray, gradients: np.ndarray) -> None:
        assert (np.diff(ids) > 0).all()
        self.pushed.append(ids.tolist())
        self.gradients.append(gradients)
        self.weight[ids] -= LR * gradients

    def flush(self) -> None:
        pass

    def export(self) -> dict[str, np.ndarray]:
        return {"weight": self.weight.copy()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        if state["weight"].shape != self.weight.shape:
            raise InvalidRequest(f"weight is {state['weight'].shape}, not {self.weight.shape}")
        self.weight = state["weight"].copy()


def pair(**options: Any) -> tuple[MemoryTable, ParityEmbeddingBag, nn.EmbeddingBag]:
    table = MemoryTable()
    plain = nn.EmbeddingBag(ROWS, DIM, _weight=torch.from_numpy(table.weight.copy()), **options)
    return table, ParityEmbeddingBag(table, **options), plain


FLAT = torch.tensor([3, 7, 3, 0, 22, 7, 7, 1])
CASES = {
    "2-D": (FLAT.view(2, 4), None),
    "offsets": (FLAT, torch.tensor([0, 3, 3, 6])),
    "int32": (FLAT.int(), torch.tensor([0, 5], dtype=torch.int32)),
    "one": (torch.tensor([[4]]), None),
    "empty": (torch.empty(0, dtype=torch.int64), torch.tensor([0, 0])),
}


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_torch_gives(mode: str, case: str) -> None:
    table, ours, plain = pair(mode=mode)
    for _ in range(3):
        found, expected = ours(*CASES[case]), plain(*CASES[case])
        torch.testing.assert_close(found, expected)
        if not found.requires_grad:
            assert case == "empty"
            return
        weights = torch.linspace(0.5, 1.5, found.numel()).view_as(found)
        (found * weights).sum().backward()
        plain.zero_grad()
        (expected * weights).sum().backward()
        with torch.no_grad():
            assert plain.weight.grad is not None
            plain.weight -= LR * plain.weight.grad
        np.testing.assert_allclose(table.weight, plain.weight.detach().numpy(), rtol=1e-5)
    assert len(table.pushed) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "sum", "padding_idx": 7},
        {"mode": "mean", "padding_idx": -1},
        {"mode": "max", "padding_idx": 7},
        {"mode": "sum", "padding_idx": 9},
        {"mode": "sum", "include_last_offset": True},
        {"mode": "mean", "scale_grad_by_freq": True},
    ],
)
def test_options_of_torch(options: dict[str, Any]) -> None:
    table, ours, plain = pair(**options)
    offsets = torch.tensor([0, 3, 8] if "include_last_offset" in options else [0, 3])
    found, expected = ours(FLAT, offsets), plain(FLAT, offsets)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert plain.weight.grad is not None
    gradient = np.zeros((ROWS, DIM), np.float32)
    gradient[table.pushed[0]] = table.gradients[0]
    np.testing.assert_allclose(gradient, plain.weight.grad.numpy(), rtol=1e-6)
    if "padding_idx" in options:
        assert options["padding_idx"] % ROWS not in table.pushed[0]


def test_per_sample_weights_get_their_gradient() -> None:
    _, ours, plain = pair(mode="sum")
    offsets = torch.tensor([0, 3, 6])
    mine = torch.rand(len(FLAT), generator=torch.Generator().manual_seed(1), requires_grad=True)
    theirs = mine.detach().clone().requires_grad_()
    found, expected = ours(FLAT, offsets, mine), plain(FLAT, offsets, theirs)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_without_gradients_nothing_is_pushed() -> None:
    table, ours, _ = pair(mode="sum")
    with torch.no_grad():
        ours(FLAT.view(2, 4))
    ours.eval()
    assert not ours(FLAT.view(2, 4)).requires_grad
    assert table.pushed == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.tensor([[1, -1]]), "id -1 is not 0 to 22"),
        (torch.tensor([[1, 23]]), "id 23 is not 0 to 22"),
        (torch.tensor([[1, 2**31 + 5]]), f"id {2**31 + 5} is not 0 to 22"),
        (torch.tensor([[1.0]]), "ids are int32 or int64"),
    ],
)
def test_bad_ids_are_named(given: torch.Tensor, said: str) -> None:
    table, ours, _ = pair(mode="sum")
    with pytest.raises(InvalidRequest, match=said):
        ours(given)
    assert table.pulled == []


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidRequest, match="mode 'median'"):
        ParityEmbeddingBag(MemoryTable(), mode="median")
    with pytest.raises(InvalidRequest, match="padding_idx 23"):
        ParityEmbeddingBag(MemoryTable(), padding_idx=23)
    with pytest.raises(NotSupported, match="copy"):
        copy.deepcopy(ParityEmbeddingBag(MemoryTable()))


@pytest.mark.parametrize(
    "name",
    ["num_embeddings", "embedding_dim", "max_norm", "norm_type", "sparse", "_weight", "device",
     "dtype"],
)  # fmt: skip
def test_arguments_of_torch_that_it_has_not_are_refused_by_name(name: str) -> None:
    assert name in inspect.signature(nn.EmbeddingBag).parameters
    assert name in (ParityEmbeddingBag.__doc__ or "")
    with pytest.raises(TypeError, match=name):
        ParityEmbeddingBag(MemoryTable(), **{name: None})


def test_it_has_no_other_arguments_than_torch() -> None:
    ours = inspect.signature(ParityEmbeddingBag).parameters
    theirs = inspect.signature(nn.EmbeddingBag).parameters
    for name in ours.keys() - {"table"}:
        assert ours[name].default == theirs[name].default, name


def test_each_forward_is_a_push_of_its_own() -> None:
    table, ours, _ = pair(mode="sum")
    (ours(FLAT.view(2, 4)).sum() + ours(FLAT.view(4, 2)).sum()).backward()
    assert len(table.pushed) == 2


def test_state_dict_goes_to_torch_and_back() -> None:
    table, ours, plain = pair(mode="sum")
    state = nn.Sequential(ours).state_dict()
    assert list(state) == ["0.weight"]
    nn.Sequential(plain).load_state_dict(state)
    with torch.no_grad():
        plain.weight.mul_(2.0)
    nn.Sequential(ours).load_state_dict(nn.Sequential(plain).state_dict())
    np.testing.assert_array_equal(table.weight, plain.weight.detach().numpy())
    with pytest.raises(RuntimeError, match="weight is"):
        nn.Sequential(ours).load_state_dict({"0.weight": torch.zeros(2, 2)})
    with pytest.raises(RuntimeError, match="Missing key"):
        nn.Sequential(ours).load_state_dict({})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        nn.Sequential(ours).load_state_dict({"0.weight": torch.zeros(ROWS, DIM), "0.x": FLAT})


def test_prefetching_changes_no_result() -> None:
    batches = [
        torch.randint(0, ROWS, (4, 3), generator=torch.Generator().manual_seed(i)) for i in range(9)
    ]

    def train(ahead: bool) -> MemoryTable:
        table, bag, _ = pair(mode="sum")
        loader = PrefetchIter(batches, lambda ids: [(bag, ids)]) if ahead else batches
        for ids in loader:
            bag(ids).square().sum().backward()
        return table

    ahead, plain = train(True), train(False)
    assert ahead.weight.tobytes() == plain.weight.tobytes()
    assert ahead.pushed == plain.pushed
    # Rows that the step before changed were pulled a second time, and no others.
    assert len(ahead.pulled) > len(plain.pulled)
    assert sum(map(len, ahead.pulled)) < 2 * sum(map(len, plain.pulled))


def test_tables_of_a_store_are_pulled_together() -> None:
    """Two bags of one table are two questions; a batch without ids is none."""
    one, other = MemoryStore(), MemoryStore()
    tables = [MemoryTable(n, s) for n, s in (("a", one), ("b", one), ("c", other), ("d", one))]
    bags = [ParityEmbeddingBag(table, mode="sum") for table in (*tables, tables[0])]
    ids = [torch.tensor([[i, i + 1]]) for i in range(5)]
    ids[3] = torch.empty(0, 2, dtype=torch.int64)
    pull_ahead(zip(bags, ids, strict=True))
    assert one.together == [["a", "b"], ["a"]]
    assert other.together == [["c"]]
    for bag, some in zip(bags, ids, strict=True):
        rows = torch.from_numpy(bag.table.weight[some.numpy()])  # type: ignore[attr-defined]
        torch.testing.assert_close(bag(some), rows.sum(1))
    assert [len(table.pulled) for table in tables] == [2, 1, 1, 0]  # and nothing was pulled again

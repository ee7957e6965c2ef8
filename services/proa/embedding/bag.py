"""`ParityEmbeddingBag`: torch.nn.EmbeddingBag whose table outlives the servers that hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from proa.embedding.table import Ids, Rows, Store, Table
from proa.errors import InvalidRequest, NotSupported

MODES = ("sum", "mean", "max")
AHEAD_MAX = 8


class ParityEmbeddingBag(torch.nn.Module):
    """As torch.nn.EmbeddingBag, with the same arguments of `forward`, results and gradients.

    The rows of a batch are pulled in `forward`; their gradients are pushed when `backward` reaches
    them, and the store applies the table's optimiser: no torch optimiser sees these parameters.
    In eval mode or without gradients nothing is pushed. Rows of `padding_idx` are never changed.
    Outside a session every `forward` is a push of its own: two of one bag in a step are two steps
    of the optimiser. In a session they are summed first.
    The constructor has no num_embeddings, embedding_dim, device and dtype (fp32): these are of the
    table and of the ids; no `_weight` (`load_state_dict`); no max_norm and norm_type: a pull never
    changes a row; no sparse: gradients always are.
    `state_dict` has `weight` and `state.NAME` for the optimiser's state, whatever holds them.
    """

    def __init__(
        self,
        table: Table,
        *,
        mode: str = "mean",
        scale_grad_by_freq: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> None:
        """Raises InvalidRequest for an unknown mode or a padding_idx outside the table."""
        super().__init__()
        if mode not in MODES:
            raise InvalidRequest(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if padding_idx is not None:
            if not -table.rows <= padding_idx < table.rows:
                raise InvalidRequest(f"padding_idx {padding_idx}: the table has {table.rows} rows")
            padding_idx %= table.rows
        self.table = table
        self.num_embeddings, self.embedding_dim = table.rows, table.dim
        self.mode, self.scale_grad_by_freq = mode, scale_grad_by_freq
        self.include_last_offset, self.padding_idx = include_last_offset, padding_idx
        self._ahead = _Ahead(table)

    def forward(
        self,
        input: torch.Tensor,  # noqa: A002  # the name torch.nn.EmbeddingBag has
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`[bags, dim]` fp32. input: integer ids `[bags, per bag]`, or flat with `offsets`.

        Errors: InvalidRequest, naming the first id that is not in the table.
        """
        ids, places = self._distinct(input)
        if not len(ids):
            return self._of_nothing(input, offsets)
        rows = torch.from_numpy(self._ahead.take(ids)).to(input.device)
        if self.training and torch.is_grad_enabled():
            rows.requires_grad_()
            rows.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda leaf: self._push(ids, leaf)
            )
        padding = None
        if self.padding_idx is not None:
            at = int(np.searchsorted(ids, self.padding_idx))
            padding = at if at < len(ids) and ids[at] == self.padding_idx else None
        return functional.embedding_bag(
            places, rows, offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            scale_grad_by_freq=self.scale_grad_by_freq,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )  # fmt: skip

    def prefetch(self, input: torch.Tensor) -> None:  # noqa: A002
        """`pull_ahead` for this bag alone."""
        pull_ahead([(self, input)])

    def ids_of(self, input: torch.Tensor) -> Ids:  # noqa: A002
        """The rows that a `forward` needs: distinct, ascending. Errors: InvalidRequest."""
        return self._distinct(input)[0]

    def expect(self, ids: Ids, pulled: Future[dict[str, Rows]]) -> None:
        """The next `forward` that needs exactly these rows takes them from there, by table."""
        self._ahead.begin(ids, pulled)

    def flush(self) -> None:
        """Return when the store has acknowledged every gradient so far."""
        self.table.flush()

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"

    def _distinct(self, given: torch.Tensor) -> tuple[Ids, torch.Tensor]:
        """The ids of a batch, ascending, and where each element of `given` is among them."""
        if given.dtype not in (torch.int32, torch.int64):
            raise InvalidRequest(f"input: ids are int32 or int64, not {given.dtype}")
        ids, places = torch.unique(given, sorted=True, return_inverse=True)
        found: Ids = ids.cpu().numpy().astype(np.int64, copy=False)
        if len(found) and (found[0] < 0 or found[-1] >= self.num_embeddings):
            wrong = found[0] if found[0] < 0 else found[-1]
            raise InvalidRequest(
                f"input: id {wrong} is not 0 to {self.num_embeddings - 1} (table {self.table.name})"
            )
        return found, places.to(given.dtype)

    def _of_nothing(self, given: torch.Tensor, offsets: torch.Tensor | None) -> torch.Tensor:
        rows = torch.zeros(1, self.embedding_dim, device=given.device)
        return functional.embedding_bag(
            given, rows, offsets, mode=self.mode, include_last_offset=self.include_last_offset
        )

    def _push(self, ids: Ids, rows: torch.Tensor) -> None:
        assert rows.grad is not None
        gradients: Rows = rows.grad.cpu().numpy()
        rows.grad = None
        if self.padding_idx is not None:
            kept = ids != self.padding_idx
            ids, gradients = ids[kept], gradients[kept]
        self._ahead.changed(ids)
        self.table.push(ids, gradients)

    # --- state_dict

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.table.flush()
        for name, value in self.table.export().items():
            destination[prefix + _key(name)] = torch.from_numpy(value)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,  # noqa: ARG002
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {
            name.removeprefix(prefix): value
            for name, value in state_dict.items()
            if name.startswith(prefix)
        }
        weight = ours.pop("weight", None)
        if weight is None:
            missing_keys.append(prefix + "weight")
            return
        unknown = [name for name in ours if not name.startswith("state.")]
        unexpected_keys.extend(prefix + name for name in unknown)
        state = {name.removeprefix("state."): ours[name] for name in ours if name not in unknown}
        try:
            self.table.load({"weight": _array(weight), **{n: _array(v) for n, v in state.items()}})
        except InvalidRequest as exc:
            error_msgs.append(f"{prefix}weight: {exc}")
        self._ahead.forget()

    def __deepcopy__(self, memo: Any) -> ParityEmbeddingBag:
        raise NotSupported("a copy of a ParityEmbeddingBag would share its table: make another one")


def pull_ahead(inputs: Iterable[tuple[ParityEmbeddingBag, torch.Tensor]]) -> None:
    """Begin to pull what later `forward`s of these bags with these ids need, in the background: all
    tables of a store in one exchange with each shard.

    Rows that these bags push meanwhile are pulled again then, so what `forward` uses is not older
    than without; what other workers push meanwhile is not in it.
    """
    calls: list[_Call] = []
    for bag, given in inputs:
        table, ids = bag.table, bag.ids_of(given)
        if not len(ids):
            continue
        for call in calls:
            if call.store is table.store and table.name not in call.bags:
                break
        else:
            calls.append(call := _Call(table.store))
        call.bags[table.name], call.asked[table.name] = bag, ids
    for call in calls:
        pulled = call.store.begin_pull(call.asked)
        for name, bag in call.bags.items():
            bag.expect(call.asked[name], pulled)


@dataclass
class _Call:
    """Tables of one store, none twice."""

    store: Store
    bags: dict[str, ParityEmbeddingBag] = field(default_factory=dict)
    asked: dict[str, Ids] = field(default_factory=dict)


class _Ahead:
    """Rows that are pulled before they are asked for, at most `AHEAD_MAX` batches of them."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._begun: dict[bytes, tuple[Future[dict[str, Rows]], list[Ids]]] = {}

    def begin(self, ids: Ids, pulled: Future[dict[str, Rows]]) -> None:
        """They come with `pulled`."""
        while len(self._begun) >= AHEAD_MAX:
            del self._begun[next(iter(self._begun))]
        self._begun[ids.tobytes()] = (pulled, [])

    def changed(self, ids: Ids) -> None:
        """These rows are about to change: what is pulled before has them as they were."""
        for _, changes in self._begun.values():
            changes.append(ids)

    def take(self, ids: Ids) -> Rows:
        """The rows as they are now."""
        begun = self._begun.pop(ids.tobytes(), None)
        if begun is None:
            return self._table.pull(ids)
        pulled, changes = begun
        rows = pulled.result()[self._table.name]
        again = np.isin(ids, np.concatenate(changes)) if changes else np.zeros(len(ids), bool)
        if again.any():
            rows = rows.copy()
            rows[again] = self._table.pull(ids[again])
        return rows

    def forget(self) -> None:
        self._begun.clear()


def _key(name: str) -> str:
    return name if name == "weight" else f"state.{name}"


def _array(value: Any) -> Rows:
    return np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy(), dtype=np.float32)

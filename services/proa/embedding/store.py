"""The store for torch: a client with an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import numpy as np

from proa.embedding.table import Ids, Rows
from proa.errors import InvalidRequest
from proa.store.access import Access
from proa.store.client import StoreClient
from proa.store.optimisers import Optimiser, sum_duplicates
from proa.store.pushing import Session
from proa.store.tables import Table as Description

Result = TypeVar("Result")


class ParityStore:
    """A connection to a store. `with ParityStore("127.0.0.1:8021") as store`. For one thread.

    session: synchronous training. All members push the same steps, each ended by `step()`, and a
    step is applied once, to the sum of what they pushed. Without it each gradient is applied as it
    comes, as long as fewer than `inflight_max` are under way, and `step()` does nothing.
    access: certificates and the user of the shards' servers, where the store asks for them.
    Errors: ShardUnavailable when nobody answers within `timeout_s`.
    """

    def __init__(
        self,
        coordinator: str,
        *,
        session: Session | None = None,
        timeout_s: float = 30.0,
        inflight_max: int = 2,
        access: Access | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._gathered: dict[str, list[tuple[Ids, Rows]]] = {}
        self._session = session

        async def connect() -> StoreClient:
            client = StoreClient(
                coordinator,
                session=session,
                timeout_s=timeout_s,
                inflight_max=inflight_max,
                access=access,
            )
            return await client.__aenter__()

        try:
            self._client = self._run(connect())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush what is under way first, if it matters."""
        if self._thread.is_alive():
            self._run(self._client.close())
            self._end()

    def create_table(self, name: str, **options: Any) -> StoreTable:
        """Add a table, or find the same one: see `proa.store.tables.Table` for `rows`, `dim`,
        `optimiser`, `init`. Errors: InvalidRequest, Unavailable."""
        self._run(self._client.create_table(Description(name, **options)))
        return self.table(name)

    def table(self, name: str) -> StoreTable:
        """A table that is there. Errors: InvalidRequest."""
        return StoreTable(self, self._run(self._client.table(name)))

    def step(self) -> None:
        """End a step: what was gathered since the last one is pushed as a whole."""
        if self._session is not None:
            gathered, self._gathered = self._gathered, {}
            sums = {
                name: sum_duplicates(*(np.concatenate(some) for some in zip(*parts, strict=True)))
                for name, parts in gathered.items()
            }
            self._run(self._client.push(sums))

    def flush(self) -> None:
        """Return when every step was acknowledged. Errors: what one of them met."""
        self._run(self._client.flush())

    def pull(self, table: str, ids: Ids) -> Rows:
        """float32 `[ids, dim]`; no id twice."""
        return self._run(self._client.pull(table, ids))

    def pull_many(self, asked: Mapping[str, Ids]) -> dict[str, Rows]:
        """`pull` of some tables at once, by name: one exchange with each shard."""
        return self.begin_pull(asked).result()

    def begin_pull(self, asked: Mapping[str, Ids]) -> Future[dict[str, Rows]]:
        """`pull_many` in the background; the result raises what it met."""
        return asyncio.run_coroutine_threadsafe(self._client.pull_many(asked), self._loop)

    def push(self, table: str, ids: Ids, gradients: Rows) -> None:
        """In a session: kept until `step()`. Else on its way when this returns."""
        if self._session is not None:
            self._gathered.setdefault(table, []).append((ids, gradients.copy()))
        else:
            self._run(self._client.push({table: (ids, gradients)}))

    def export(self, table: str) -> tuple[Rows, Rows]:
        """Weights `[rows, dim]` and the optimiser's state `[rows, floats]`."""

        async def read() -> tuple[list[Rows], list[Rows]]:
            rows = (await self._client.table(table)).rows
            chunks = [chunk async for chunk in self._client.export(table, 0, rows)]
            return [weights for _, weights, _ in chunks], [state for _, _, state in chunks]

        weights, state = self._run(read())
        return np.concatenate(weights), np.concatenate(state)

    def load(self, table: str, weights: Rows, state: Rows | None) -> None:
        """Replace all rows; without `state` the optimiser begins anew. Acknowledged on return."""
        self._run(self._client.load(table, weights, state))

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class StoreTable:
    """A `proa.embedding.Table`."""

    def __init__(self, store: ParityStore, described: Description) -> None:
        self._store, self._described = store, described

    @property
    def store(self) -> ParityStore:
        return self._store

    @property
    def name(self) -> str:
        return self._described.name

    @property
    def rows(self) -> int:
        return self._described.rows

    @property
    def dim(self) -> int:
        return self._described.dim

    @property
    def optimiser(self) -> Optimiser:
        return self._described.optimiser

    def pull(self, ids: Ids) -> Rows:
        return self._store.pull(self.name, ids)

    def push(self, ids: Ids, gradients: Rows) -> None:
        self._store.push(self.name, ids, gradients)

    def flush(self) -> None:
        self._store.flush()

    def export(self) -> dict[str, Rows]:
        weights, state = self._store.export(self.name)
        return {"weight": weights, "optimiser": state} if state.shape[1] else {"weight": weights}

    def load(self, state: Mapping[str, Rows]) -> None:
        """Errors: InvalidRequest, naming the shape."""
        shapes = {"weight": (self.rows, self.dim)}
        floats = self.optimiser.state_floats(self.dim)
        if floats:
            shapes["optimiser"] = (self.rows, floats)
        for name, value in state.items():
            if value.shape != shapes.get(name):
                wanted = f"not {list(shapes[name])}" if name in shapes else "and not of this table"
                raise InvalidRequest(f"{name}: {list(value.shape)}, {wanted}")
        self._store.load(self.name, state["weight"], state.get("optimiser"))

"""The store for torch: a client with an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar

import numpy as np

from proa.embedding.table import Ids, Rows
from proa.errors import DataLost, InvalidRequest, Overloaded, ProaError
from proa.store.access import Access
from proa.store.client import MESSAGE_BYTES_MAX, StoreClient
from proa.store.optimisers import Optimiser, sum_duplicates
from proa.store.pushing import Parts, Session
from proa.store.tables import Table as Description

Result = TypeVar("Result")
LATE_MAX = 4096


class ParityStore:
    """A connection to a store. `with ParityStore("127.0.0.1:8021") as store`. For one thread.

    session: synchronous training. All members push the same steps, each ended by `step()`, and a
    step is applied once, to the sum of what they pushed. Its number belongs to one job for ever: a
    job that begins anew takes another one, one that goes on at step N says `begin=N` (see
    `Session`). Without a session each push is applied as it comes, as long as fewer than
    `inflight_max` are under way: each backward pass of a bag is a step of its table's optimiser
    for every `forward` in it. `step()` then only raises what pushes met.
    access: certificates and the user of the shards' servers, where the store asks for them.
    message_bytes_max: of what a step has for one shard.

    A push that was not acknowledged in time is kept (`flush`): after the error, `retry()`, and then
    the call that raised it once more. No gradients get lost between.
    Errors: ShardUnavailable when nobody answers within `timeout_s`; InvalidRequest where the
    session does not stand at its `begin`.
    """

    def __init__(
        self,
        coordinator: str,
        *,
        session: Session | None = None,
        timeout_s: float = 30.0,
        inflight_max: int = 2,
        access: Access | None = None,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._gathered: dict[str, list[tuple[Ids, Rows]]] = {}
        self._late: list[Parts] = []  # outside a session: pushed, and not taken yet
        self._met: ProaError | None = None
        self._session = session

        async def connect() -> StoreClient:
            client = StoreClient(
                coordinator,
                session=session,
                timeout_s=timeout_s,
                inflight_max=inflight_max,
                access=access,
                message_bytes_max=message_bytes_max,
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
        """End a step: what was gathered since the last one is pushed as a whole.

        Errors: InvalidRequest, of these gradients; or what an earlier step met. Either way they
        stay gathered, for another `step()`, or for `discard()`.
        """
        if self._session is None:
            self._settle()
            return
        sums = {
            name: sum_duplicates(*(np.concatenate(some) for some in zip(*parts, strict=True)))
            for name, parts in self._gathered.items()
        }

        async def push() -> None:
            await self._client.push(sums)
            self._gathered = {}  # here: whoever interrupts the wait must not push it twice

        self._run(push())

    def discard(self) -> None:
        """Forget what was gathered since the last step, as a worker does that skips one: its
        `step()` still takes part."""
        self._gathered = {}

    def flush(self) -> None:
        """Return when every step was acknowledged. Errors: what one of them met.

        InvalidRequest and DataLost are raised once: each shard has taken its part of that step or
        refused it for good. With any other error the step is unresolved: it is raised again until
        `retry()` succeeds.
        """
        self._settle()
        self._run(self._client.flush())

    def retry(self) -> None:
        """Push unresolved steps again, as the same steps: each is applied once, whatever came of
        it before. Returns when every step was acknowledged. Errors: as `flush`."""
        self._run(self._client.retry())
        self.flush()

    def pull(self, table: str, ids: Ids) -> Rows:
        """float32 `[ids, dim]`; no id twice. Outside a session it raises first what pushes met."""
        self._settle()
        return self._run(self._client.pull(table, ids))

    def pull_many(self, asked: Mapping[str, Ids]) -> dict[str, Rows]:
        """`pull` of some tables at once, by name: one exchange with each shard."""
        return self.begin_pull(asked).result()

    def begin_pull(self, asked: Mapping[str, Ids]) -> Future[dict[str, Rows]]:
        """`pull_many` in the background; the result raises what it met."""
        self._settle()
        return asyncio.run_coroutine_threadsafe(self._client.pull_many(asked), self._loop)

    def push(self, table: str, ids: Ids, gradients: Rows) -> None:
        """In a session: kept until `step()`. Else on its way when this returns; what an earlier
        push met is raised by the next `pull`, `step` or `flush`, and not here, in the midst of a
        backward pass whose other gradients would be lost. Errors: InvalidRequest, of this push."""
        if self._session is not None:
            self._gathered.setdefault(table, []).append((ids, gradients.copy()))
            return
        if len(self._late) >= LATE_MAX:
            raise Overloaded(f"{LATE_MAX} pushes wait for one that failed: see flush() and retry()")
        self._late.append(self._run(self._client.prepared({table: (ids, gradients)})))
        try:
            self._take_late()
        except (InvalidRequest, DataLost) as exc:
            self._met = self._met or exc
        except ProaError:
            pass  # raised again as long as it is not resolved

    def _take_late(self) -> None:
        while self._late:
            self._run(self._client.take(self._late[0]))
            del self._late[0]

    def _settle(self) -> None:
        """Errors: what pushes outside a session met."""
        met, self._met = self._met, None
        if met is not None:
            raise met
        self._take_late()

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

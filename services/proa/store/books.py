"""What a coordinator keeps: the map, the tables, and the name of the store, in one state."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Hashable
from typing import Any

from proa.errors import InvalidRequest, ProaError, SettingsError, Unavailable
from proa.store.keeper import Keeper, map_from_json, map_to_json
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.config import StoreConfig
from proa.store.shell import Post
from proa.store.tables import Catalogue, Table
from proa.store.tenure import State, Tenure

log = logging.getLogger(__name__)

LOOK_S = 0.02
_FORMAT = 1


class Books:
    """`fresh`: the catalogue of a store that is new. Errors: SettingsError if the file is of a
    store with other shards, InvalidRequest if it is no state."""

    def __init__(
        self,
        state: State,
        fresh: Catalogue,
        post: Post,
        config: StoreConfig,
        tenure: Tenure | None = None,
    ) -> None:
        self._state, self.config = state, config
        self.tenure = tenure or Tenure()
        self._creating = asyncio.Lock()
        found = state.load()
        known: ClusterMap | None = None
        if found is None:
            self.store, self.catalogue = secrets.token_hex(8), fresh
        else:
            self.store, self.catalogue, known = _read(found)
            self._check(self.catalogue, fresh)
        self.keeper = Keeper(
            len(fresh.domains), post=post, config=config, persist=self._save, known=known
        )
        self._save(self.keeper.map)
        # The catalogue is written first: the map may not know of its last table yet.
        self.keeper.extend(self.catalogue.layout.stripes)

    @property
    def map(self) -> ClusterMap:
        """Errors: Unavailable, if we are the coordinator no more."""
        self.tenure.check()
        return self.keeper.map

    def receive(self, sender: Hashable, message: ms.Message) -> None:
        """As Keeper.receive. Errors: Unavailable, as `map`."""
        self.tenure.check()
        self.keeper.receive(sender, message)

    async def create(self, table: Table, limit_s: float) -> int:
        """Add a table; the version of the catalogue that has it on all shards. Errors:
        InvalidRequest, Unavailable after `limit_s`."""
        async with self._creating:
            grown = self.catalogue.add(table)
            if grown is not self.catalogue:
                self.catalogue = grown
                self._save(self.map)
                log.info("table name=%s rows=%d dim=%d", table.name, table.rows, table.dim)
                self.keeper.extend(grown.layout.stripes)
        stripes, version = grown.layout.stripes, grown.version
        try:
            async with asyncio.timeout(limit_s):
                while self.map.settled < stripes:  # noqa: ASYNC110  # heartbeats settle it
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            down = [shard for shard, entry in self.map.shards.items() if not entry.up]
            raise Unavailable(
                f"table {table.name!r} is not on all shards yet: {_who(down)}; ask again"
            ) from None
        return version

    def _save(self, told: ClusterMap) -> None:
        state = {
            "format": _FORMAT,
            "store": self.store,
            "map": map_to_json(told),
            "catalogue": self.catalogue.to_json(),
        }
        try:
            self._state.save(state)
        except (ProaError, OSError) as exc:
            # Our memory is ahead of what is kept: nobody may hear of it.
            self.tenure.end(f"the state was not saved: {exc}")
            raise

    def _check(self, found: Catalogue, fresh: Catalogue) -> None:
        for name in ("k", "r", "domains"):
            old, new = getattr(found, name), getattr(fresh, name)
            if old != new:
                raise SettingsError(
                    f"the state file is of a store with {name} = {old}, the settings say {new}"
                )


def _who(down: list[int]) -> str:
    return f"shards {', '.join(map(str, down))} are down" if down else "a shard is not ready"


def _read(state: dict[str, Any]) -> tuple[str, Catalogue, ClusterMap]:
    try:
        if state["format"] != _FORMAT:
            raise InvalidRequest(f"the state file has format {state['format']}, not {_FORMAT}")
        catalogue = Catalogue.from_json(state["catalogue"])
        return state["store"], catalogue, map_from_json(state["map"])
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidRequest(f"not the state of a coordinator: {exc!r}") from exc

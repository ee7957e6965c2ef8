"""Runs the coordinator: its messages, its clock, and the file in which it keeps what it granted.

Embedded, one process per store is kept by a lock on that file; on Kubernetes by a Lease.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from proa.errors import InvalidRequest, Unavailable
from proa.store.protocol import actions as ac
from proa.store.protocol import messages as ms
from proa.store.protocol.cluster_map import ClusterMap, ShardEntry
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.coordinator import Coordinator
from proa.store.shell import TICK_S, Post

log = logging.getLogger(__name__)


class StateFile:
    """A JSON object on a disk, replaced as a whole; held by one process at a time.

    Errors: Unavailable when another process has it, InvalidRequest when it is no state of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(
            path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            raise Unavailable(f"{path}: another coordinator has it") from exc

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None: nothing ever was."""
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise InvalidRequest(f"{self._path}: not the state of a coordinator: {exc}") from exc
        if not isinstance(found, dict):
            raise InvalidRequest(f"{self._path}: not the state of a coordinator")
        return found

    def save(self, state: Mapping[str, Any]) -> None:
        """On the disk when it returns."""
        fresh = self._path.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        os.close(self._lock)


def map_to_json(told: ClusterMap) -> dict[str, Any]:
    shards = {str(shard): asdict(entry) for shard, entry in told.shards.items()}
    return {
        "version": told.version,
        "stripes": told.stripes,
        "settled": told.settled,
        "shards": shards,
    }


def map_from_json(value: Mapping[str, Any]) -> ClusterMap:
    shards = {int(shard): ShardEntry(**entry) for shard, entry in value["shards"].items()}
    return ClusterMap(value["version"], shards, value["stripes"], value["settled"])


class Keeper:
    """`run` is a root task. `persist` is called with every new map before anybody hears of it."""

    def __init__(
        self,
        shards: int,
        *,
        post: Post,
        config: StoreConfig,
        persist: Callable[[ClusterMap], None],
        known: ClusterMap | None,
    ) -> None:
        now = asyncio.get_running_loop().time()
        self._post, self._persist = post, persist
        self.coordinator = Coordinator(shards, config, now, known)

    @property
    def map(self) -> ClusterMap:
        return self.coordinator.map

    async def run(self) -> None:
        """Notice who is silent. Never returns."""
        while True:
            self._handle(ac.Ticked())
            await asyncio.sleep(TICK_S)

    def receive(self, sender: Hashable, message: ms.Message) -> None:
        """A message of a shard came; those that are not for a coordinator are dropped."""
        if isinstance(message, ms.Hello | ms.Heartbeat | ms.MapAsked):
            self._handle(ac.Received(sender, message))

    def extend(self, stripes: int) -> None:
        """Tables were added: there are so many stripes now."""
        self._perform(self.coordinator.extend(stripes))

    def _handle(self, event: ac.Event) -> None:
        self._perform(self.coordinator.handle(event, asyncio.get_running_loop().time()))

    def _perform(self, actions: list[ac.Action]) -> None:
        for action in actions:
            match action:
                case ac.Persist(told):
                    up = [shard for shard, entry in told.shards.items() if entry.up]
                    log.info("map version=%d up=%s", told.version, up)
                    self._persist(told)
                case ac.Send(to, message):
                    self._post.send(to, message)
                case _:
                    raise AssertionError(f"a coordinator does not {action}")

"""The coordinator: who runs each shard, under which epoch (facts ecrm C5 recovery (1), F8, F13).

It only grants and withdraws trust. Fencing is done by the new owner, with the epoch granted here,
before it reads a version anywhere. Pulls and pushes wait for the coordinator only where clients'
maps have expired (`map_ttl_s`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Action, Event, Persist, Received, Send, Ticked
from proa.store.protocol.cluster_map import ClusterMap, ShardEntry
from proa.store.protocol.config import StoreConfig

FIRST = 1


class Coordinator:
    """`state`: the map last persisted; None: a new store of `shards` shards and `stripes`."""

    def __init__(
        self,
        shards: int,
        config: StoreConfig,
        now: float,
        state: ClusterMap | None = None,
        stripes: int = 0,
    ) -> None:
        self.config = config
        fresh = {shard: ShardEntry() for shard in range(shards)}
        self.map = state or ClusterMap(0, fresh, stripes, stripes)
        # Until then clients may use a map that names a disk nobody keeps up to date any more.
        self._old_maps_until = now + config.map_ttl_s if state else now
        # Agents of a coordinator that died must find this one first.
        grace_s = config.detect_s if state else 0.0
        self._heard = dict.fromkeys(self.map.shards, now + grace_s)
        self._awake = now
        self._ready = dict.fromkeys(self.map.shards, 0)
        self._address: dict[int, Hashable] = {}
        self._waiting: dict[int, tuple[ms.Hello, Hashable]] = {}
        self._out: list[Action] = []
        self._handlers: dict[type, Callable[[Any, Hashable, float], None]] = {
            ms.Hello: self._hello,
            ms.Heartbeat: self._heartbeat,
            ms.MapAsked: self._map_asked,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event; the actions it calls for."""
        self._notice_stall(now)
        if isinstance(event, Received):
            self._handlers[type(event.message)](event.message, event.sender, now)
        elif isinstance(event, Ticked):
            self._tick(now)
        out, self._out = self._out, []
        return out

    def _notice_stall(self, now: float) -> None:
        """Ticks come more often than heartbeats. Where they did not, we were stopped, or the whole
        machine was: heartbeats of that time are still to be read, and nobody was silent."""
        stalled_s = now - self._awake - self.config.heartbeat_s
        self._awake = now
        if stalled_s > 0.0:
            self._heard = {shard: at + stalled_s for shard, at in self._heard.items()}

    def _hello(self, hello: ms.Hello, sender: Hashable, now: float) -> None:
        entry = self.map.shards[hello.shard]
        if hello.nonce == entry.nonce and entry.up:
            # Its grant was lost, or this is an echo of its question: either way, the same answer.
            self._out.append(Send(sender, self._granted(hello, now)))
            return
        silent_s = now - self._heard[hello.shard]
        if entry.up and hello.disk != entry.disk and silent_s <= self.config.detect_s:
            # Two processes that want one shard would depose each other for ever: who has it keeps
            # it while it is alive. On the same disk there is only one, and the other one is dead.
            return
        self._waiting[hello.shard] = (hello, sender)
        new = not any(known.epoch for known in self.map.shards.values())
        if new and len(self._waiting) < len(self.map.shards):
            # A new store begins with all its shards: parity that comes later would have to be
            # told apart from parity that was lost.
            return
        self._grant(now, first=new)

    def _grant(self, now: float, *, first: bool) -> None:
        shards = dict(self.map.shards)
        for hello, _ in self._waiting.values():
            old = shards[hello.shard]
            epoch = old.epoch + 1
            same = hello.disk == old.disk
            trusted = same and old.up and hello.stamp >= max(old.disk_since, old.trust_since)
            shards[hello.shard] = ShardEntry(
                epoch=epoch,
                up=True,
                disk=hello.disk,
                disk_since=old.disk_since if same else epoch,
                trust_since=old.trust_since if trusted else epoch,
                nonce=hello.nonce,
            )
            if old.up and not trusted:
                self._old_maps_until = now + self.config.map_ttl_s
        assert not first or all(entry.epoch == FIRST for entry in shards.values())
        self._change(shards)
        for hello, sender in self._waiting.values():
            self._address[hello.shard] = sender
            self._heard[hello.shard] = now
            self._ready[hello.shard] = 0
            self._out.append(Send(sender, self._granted(hello, now)))
        self._waiting.clear()
        self._publish()

    def _granted(self, hello: ms.Hello, now: float) -> ms.Grant:
        """The grant in force of the shard, as it was given or would have been given."""
        entry = self.map.shards[hello.shard]
        first = entry.epoch == FIRST
        same = entry.disk_since < entry.epoch
        return ms.Grant(
            shard=hello.shard,
            nonce=hello.nonce,
            epoch=entry.epoch,
            first=first,
            fresh=first or (same and hello.stamp >= entry.disk_since),
            trusted=first or entry.trust_since < entry.epoch,
            wait_s=0.0 if first else max(0.0, self._old_maps_until - now),
            map=self.map,
        )

    def _heartbeat(self, beat: ms.Heartbeat, sender: Hashable, now: float) -> None:
        entry = self.map.shards[beat.shard]
        if entry.up and entry.epoch == beat.epoch:
            self._heard[beat.shard] = now
            self._address[beat.shard] = sender
            self._ready[beat.shard] = beat.ready
            self._settle()
        if beat.map_version < self.map.version:
            self._out.append(Send(sender, ms.MapTold(self.map)))

    def extend(self, stripes: int) -> list[Action]:
        """Tables were added: there are `stripes` stripes now. They are used when the map says that
        they are settled; until then clients must not know of them."""
        if stripes > self.map.stripes:
            self._change(self.map.shards, stripes)
            self._publish()
        out, self._out = self._out, []
        return out

    def _settle(self) -> None:
        """The barrier: every shard that there is has the new stripes, and parity for them."""
        entries = self.map.shards.values()
        ready = min(self._ready.values())
        if min(ready, self.map.stripes) > self.map.settled and all(e.up for e in entries):
            self._change(self.map.shards, settled=ready)
            self._publish()

    def _map_asked(self, asked: ms.MapAsked, sender: Hashable, _now: float) -> None:
        self._out.append(Send(sender, ms.MapTold(self.map, asked.asked_s)))

    def _tick(self, now: float) -> None:
        late = [
            shard
            for shard, entry in self.map.shards.items()
            if entry.up and now - self._heard[shard] > self.config.detect_s
        ]
        if late:
            self._old_maps_until = now + self.config.map_ttl_s
            shards = dict(self.map.shards)
            for shard in late:
                shards[shard] = replace(shards[shard], up=False)
            self._change(shards)
            self._publish()

    def _change(
        self,
        shards: Mapping[int, ShardEntry],
        stripes: int | None = None,
        settled: int | None = None,
    ) -> None:
        old = self.map
        self.map = ClusterMap(
            old.version + 1,
            shards,
            old.stripes if stripes is None else stripes,
            old.settled if settled is None else settled,
        )
        self._out.append(Persist(self.map))

    def _publish(self) -> None:
        told = ms.MapTold(self.map)
        self._out.extend(Send(address, told) for address in self._address.values())

"""The owner of the data blocks of one shard: the only one who writes them (facts ecrm C5)."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice

from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Action, Fetched, Phase, ReadDone
from proa.store.protocol.cluster_map import ClusterMap
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.journal import Journal
from proa.store.protocol.layout import Layout
from proa.store.protocol.opening import Opening
from proa.store.protocol.owned import OwnerState
from proa.store.protocol.pushes import Pushes, Update
from proa.store.protocol.repair import Repair
from proa.store.protocol.shipping import Shipping
from proa.store.protocol.storage import BlockWrite, ShardImage


class Owner:
    """Composes the parts; silent until the shard has its grant (`start`)."""

    shipping_class = Shipping

    def __init__(
        self,
        layout: Layout,
        shard: int,
        config: StoreConfig,
        image: ShardImage,
        journal: Journal,
        update: Update,
        out: list[Action],
    ) -> None:
        self.state = OwnerState(layout, shard, config, image, journal, out)
        self.repair = Repair(self.state)
        self.shipping = self.shipping_class(self.state)
        self.pushes = Pushes(self.state, self.shipping, update, self.repair.want)
        self._opening: Opening | None = None
        self._extending = 0

    def start(self, grant: ms.Grant, told: ClusterMap, now: float) -> None:
        """The stamp is on the disk: fence earlier owners and open. `told`: the latest map."""
        state = self.state
        state.epoch, state.open_at, state.map = grant.epoch, now + grant.wait_s, told
        for owned in state.blocks.values():
            new = owned.epoch < 0 and owned.block.stripe >= told.settled
            if grant.first or new:
                owned.epoch = owned.version = owned.durable = 0
        self._opening = Opening(state, fresh=grant.fresh)
        self._opening.start(now)

    def map_changed(self, told: ClusterMap, now: float) -> None:
        """Take over a map in which this owner still has its shard."""
        self.state.map = told
        if self.state.phase is Phase.OPEN:
            self.shipping.map_changed(now)
        elif self._opening is not None:
            self._opening.map_changed(now)

    def extend(self, layout: Layout, now: float) -> None:
        """There are more stripes. An owner that is opening begins again, with all of them."""
        found = self.state.extend(layout)
        if self._opening is not None and self.state.phase is Phase.OPENING:
            self._opening.start(now)
            return
        for owned in found:
            owned.epoch = self.state.epoch
        todo = iter(found)
        while some := list(islice(todo, self.state.config.open_blocks)):
            self._extending += 1
            writes = tuple(BlockWrite(o.block, o.meta()) for o in some)
            self.state.journal.commit(writes, self._extended)

    def _extended(self, _now: float) -> None:
        self._extending -= 1

    def is_ready(self) -> bool:
        """Whether it serves all stripes of its layout, and its disk knows of all of them."""
        return self.state.phase is Phase.OPEN and not self._extending

    def fenced(self, told: ms.Fenced, now: float) -> None:
        """A parity shard refuses earlier owners from here on."""
        if self._opening is not None and self.state.phase is Phase.OPENING:
            self._opening.fenced(told, now)

    def adopted(self, told: ms.Adopted, now: float) -> None:
        """A parity shard follows this owner."""
        if self._opening is not None and self.state.phase is Phase.OPENING:
            self._opening.adopted(told, now)

    def join(self, join: ms.Join, sender: Hashable, now: float) -> None:
        """A parity block asks to be supplied."""
        if self.state.phase is Phase.OPEN:
            self.shipping.join(join, sender, now)

    def fetched(self, event: Fetched, now: float) -> None:
        """Own rows came from the disk."""
        if not self.shipping.fetched(event.ticket, event.found, now):
            self.pushes.fetched(event.ticket, event.found, now)

    def read_done(self, event: ReadDone, now: float) -> None:
        """Rows of another shard came, or did not."""
        if self.repair.read_done(event.ticket, event.view):
            self.pushes.pump(now)

    def tick(self, now: float) -> None:
        """Resend what is due; go on with the sweep."""
        self.pushes.tick(now)
        if self.state.phase is Phase.OPENING and self._opening is not None:
            self._opening.remind(now)
        elif self.state.phase is Phase.OPEN:
            self.shipping.remind(now)
            self.pushes.pump(now)
            self.repair.sweep(now)

"""Owners and parity keepers that lack one ingredient of the protocol each (facts ecrm C6)."""

from __future__ import annotations

from dataclasses import replace

from fakes.store_faults import Mix
from proa.store.protocol import messages as ms
from proa.store.protocol.agent import Agent
from proa.store.protocol.coded import Coded
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry
from proa.store.protocol.owned import Owned
from proa.store.protocol.owner import Owner
from proa.store.protocol.parity import Parity
from proa.store.protocol.shipping import Shipping


class UnorderedParity(Parity):
    """Applies every delta that comes, whenever it comes."""

    def order(self, version: int, entry: Entry) -> int:
        return 0


class NoSequenceCheck(Agent):
    parity_class = UnorderedParity


class OpenParity(Parity):
    """Takes deltas from any owner, also from one that was replaced."""

    def is_fenced(self, block: Block, epoch: int) -> bool:
        return False

    def delta(self, delta: ms.Delta, sender: object) -> None:
        coded = self.blocks.get(delta.block.stripe)
        applied = coded.vector.get(delta.block.position) if coded else None
        if applied is not None:
            delta = replace(delta, epoch=applied.epoch)
        super().delta(delta, sender)


class NoEpoch(Agent):
    parity_class = OpenParity


class HastyShipping(Shipping):
    """Acknowledges what the data's own disk has."""

    def safe(self, owned: Owned) -> int:
        return owned.durable


class HastyOwner(Owner):
    shipping_class = HastyShipping


class EarlyAcknowledgement(Agent):
    owner_class = HastyOwner


class ForgetfulParity(Parity):
    """Goes back to an older version in name only."""

    def _undo(self, coded: Coded, member: int, entry: Entry) -> None:
        pass


class NoUndoRing(Agent):
    parity_class = ForgetfulParity


# Worlds in which each of them meets what it cannot bear; the whole protocol bears all of it.
GHOSTS = Mix(
    faults=("ghost",),
    strikes=4,
    pushes=24,
    lossy=0.1,
    deltas_lost=0.6,
    refresh=0.1,
    step_faults=("ghost",),
    open_blocks=9,
)
LATE_PARITY = Mix(
    strikes=0,
    pushes=20,
    lossy=0.05,
    deltas_lost=0.8,
    steps=("W4",),
    countdown=(1, 2, 3),
    step_faults=("wipe",),
    open_blocks=9,
)
HALF_SENT = Mix(
    faults=("wipe",), strikes=0, lossy=0.0, doubled=0.0, steps=("W3",), countdown=(1, 3, 5),
    step_faults=("wipe",), pushes=16, open_blocks=9,
)  # fmt: skip
DISORDER = Mix()

# The ablation, where it is looked for, and how many parity blocks it takes to see it.
ABLATIONS: dict[str, tuple[type[Agent], Mix, int | None]] = {
    "no sequence check": (NoSequenceCheck, DISORDER, None),
    "no epoch": (NoEpoch, GHOSTS, None),
    "early acknowledgement": (EarlyAcknowledgement, LATE_PARITY, None),
    "no undo ring": (NoUndoRing, HALF_SENT, 2),
}

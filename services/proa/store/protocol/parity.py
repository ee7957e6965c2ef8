"""The parity blocks of one shard: deltas applied exactly once and in order (facts ecrm C5 W3).

Invariant I1: P_j = XOR_i g_ji D_i^(a_j[i]), always: rows and version vector change in one commit.
Memory runs ahead of the disk; whatever is said to others is said when the disk has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from proa.store import gf256
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Action, Note, Send
from proa.store.protocol.cluster_map import ClusterMap, first_term
from proa.store.protocol.coded import Coded, Place, held_of
from proa.store.protocol.config import StoreConfig
from proa.store.protocol.journal import Journal
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Entry, Mark
from proa.store.protocol.pace import Pace
from proa.store.protocol.storage import (
    Applied,
    FenceWrite,
    LogWrite,
    ShardImage,
    StripeWrite,
    Write,
)


class Parity:
    """Answers owners. It is silent until the shard has its grant (`start`)."""

    def __init__(
        self,
        layout: Layout,
        shard: int,
        config: StoreConfig,
        image: ShardImage,
        journal: Journal,
        out: list[Action],
    ) -> None:
        self.layout = layout
        self._joins_max, self._part = config.joins_max, config.open_blocks
        self.pace = Pace(config.sweep_rows_per_s_max)
        self.shard = shard
        self.stamp = 0
        self.fences = dict(image.fences)
        self.blocks = {block.stripe: self._load(block, image) for block in layout.parity_of(shard)}
        self.incomplete = {s: c for s, c in self.blocks.items() if not c.is_whole(layout.k)}
        self._places: dict[int, list[Place]] = {}
        self._index(layout, self.blocks.values())
        self._journal = journal
        self._out = out

    def _load(self, block: Block, image: ShardImage) -> Coded:
        coded = Coded(block.stripe, block.position, term=0)
        found = image.stripes.get(block.stripe)
        if found is not None:
            coded.term = found.meta.term
            coded.vector = dict(found.meta.vector)
            coded.undo = {i: deque(entries) for i, entries in found.undo.items()}
            coded.durable = {i: applied.version for i, applied in coded.vector.items()}
        return coded

    def _index(self, layout: Layout, some: Iterable[Coded]) -> None:
        """Which parity blocks have data of a shard."""
        for coded in some:
            for position in range(layout.k):
                source = layout.shard_of(coded.stripe, position)
                self._places.setdefault(source, []).append(Place(coded, position))

    def start(self, grant: ms.Grant) -> Iterator[Write]:
        """The shard runs under `grant.epoch`. What must be on the disk before anything else; each
        write is as things are when it is taken: some blocks may have been reset by then."""
        self.stamp = grant.epoch
        self.learn(grant.map)
        if grant.trusted and not grant.first:
            # Stripes that were added and of which nothing came yet.
            begun = [coded for coded in self.blocks.values() if not coded.term]
        else:
            begun = list(self.blocks.values())
        for coded in begun:
            coded.term, coded.emptied = first_term(grant.epoch), True  # of a reset: with its write
            coded.vector = (
                {i: Applied(0, 0, joined=True) for i in range(self.layout.k)}
                if grant.first
                else {i: replace(a, joined=False) for i, a in coded.vector.items()}
            )
            self._note_whole(coded)
        return self._begun(begun, first_term(grant.epoch))

    def _begun(self, begun: list[Coded], term: int) -> Iterator[Write]:
        for source in list(self.fences):
            yield FenceWrite(source, self.fences[source])
        for coded in begun:
            if coded.term == term:  # else its reset is on its way, and this would undo it
                yield StripeWrite(coded.stripe, coded.meta(), reset=not coded.vector)

    def _note_whole(self, coded: Coded) -> None:
        if coded.is_whole(self.layout.k):
            self.incomplete.pop(coded.stripe, None)
        else:
            self.incomplete.setdefault(coded.stripe, coded)

    def extend(self, layout: Layout) -> None:
        """There are more stripes: what they hold is asked for, though it is all zero yet; so the
        owners wait for them from their first push on."""
        found = layout.parity_of(self.shard, self.layout.stripes)
        new = [Coded(block.stripe, block.position, first_term(self.stamp)) for block in found]
        for coded in new:
            self.blocks[coded.stripe] = self.incomplete[coded.stripe] = coded
        self._index(layout, new)
        self.layout = layout

    def learn(self, told: ClusterMap) -> None:
        """An owner that the coordinator has replaced is fenced from here on."""
        for source, entry in told.shards.items():
            self.fences[source] = max(self.fences.get(source, 0), entry.epoch)

    # --- deltas

    def delta(self, delta: ms.Delta, sender: Hashable) -> None:
        """W3: apply it, or say why not."""
        coded = self.blocks.get(delta.block.stripe)
        if coded is None or coded.term != delta.term:
            return  # from or for another life of this block; Join sets its owner right
        if self.is_fenced(delta.block, delta.epoch):
            source = self.layout.shard_of(*delta.block)
            self._out.append(Send(sender, ms.Refused(source, self.fences[source])))
            return
        applied = coded.vector.get(delta.block.position)
        if applied is None or not applied.joined:
            # Its owner counts on it already: the answer got lost. Pushes wait, so the pace does not
            # matter; what was asked for took its share of it before.
            self._join(coded, delta.block.position)
            return
        if applied.epoch != delta.epoch:
            return
        order = self.order(applied.version, delta.entry)
        if order == 0:
            self._apply(coded, delta, applied, sender)
        else:
            self._ack(coded, delta.block, delta.epoch, sender, gap=order > 0)

    def is_fenced(self, block: Block, epoch: int) -> bool:
        """Whether a later owner of this block is known."""
        return epoch < self.fences.get(self.layout.shard_of(*block), 0)

    def order(self, version: int, entry: Entry) -> int:
        """Whether the entry was applied before (-1), is the next one (0), or is too early (1)."""
        if entry.to <= version:
            return -1
        return int(entry.start != version)

    def _apply(self, coded: Coded, delta: ms.Delta, applied: Applied, sender: Hashable) -> None:
        block, entry = delta.block, delta.entry
        coded.vector[block.position] = replace(
            applied, version=entry.to, sessions=applied.sessions.add(entry.marks)
        )
        ring = coded.undo.setdefault(block.position, deque())
        while ring and ring[0].to <= delta.watermark:
            ring.popleft()
        ring.append(entry)
        self._write(
            coded,
            block.position,
            StripeWrite(
                coded.stripe,
                coded.meta(),
                rows=entry.rows,
                delta=self._factor(coded, block.position, entry),
                source=block.position,
                undo=LogWrite(append=entry, trim_to=delta.watermark),
            ),
            lambda: self._ack(coded, block, delta.epoch, sender),
        )

    def _factor(self, coded: Coded, member: int, entry: Entry) -> gf256.Bytes:
        return gf256.scaled(self.layout.coefficient(coded.position, member), entry.delta)

    def _ack(
        self, coded: Coded, block: Block, epoch: int, sender: Hashable, *, gap: bool = False
    ) -> None:
        version = coded.durable.get(block.position)
        if version is not None:
            ack = ms.Ack(block, coded.position, coded.term, epoch, version, gap)
            self._out.append(Send(sender, ack))

    # --- a new owner

    def fence(self, fence: ms.Fence, sender: Hashable) -> None:
        """Recovery (1): from here on nothing of earlier owners is taken."""
        known = self.fences.get(fence.source, 0)
        if fence.epoch < known:
            self._out.append(Send(sender, ms.Refused(fence.source, known)))
            return
        self.fences[fence.source] = fence.epoch

        def answer(_now: float) -> None:
            places = self._places.get(fence.source, [])
            first, end = fence.part * self._part, (fence.part + 1) * self._part
            held, more = held_of(places[first:end]), end < len(places)
            fenced = ms.Fenced(
                self.shard, fence.source, fence.epoch, self.stamp, held, fence.part, more
            )
            self._out.append(Send(sender, fenced))

        self._journal.commit((FenceWrite(fence.source, fence.epoch),), answer)

    def adopt(self, adopt: ms.Adopt, sender: Hashable) -> None:
        """Recovery (3): go back to the version that all parity blocks have, once per epoch. Blocks
        that have it already only take over the epoch, all of them in one commit."""
        if adopt.epoch != self.fences.get(adopt.source, 0):
            return
        places, same = [], []
        for (block, position), (term, version) in adopt.versions.items():
            coded = self.blocks.get(block.stripe)
            if coded is None or coded.position != position:
                continue
            place = Place(coded, block.position)
            places.append(place)
            applied = coded.vector.get(block.position)
            if applied is None or term != coded.term or not applied.joined:
                continue
            if applied.epoch < adopt.epoch and applied.version > version:
                self._go_back(coded, block.position, adopt.epoch, version)
            elif applied.epoch < adopt.epoch:
                coded.vector[block.position] = replace(applied, epoch=adopt.epoch)
                same.append(place)
        held = held_of(places)

        def answer(_now: float) -> None:
            adopted = ms.Adopted(self.shard, adopt.source, adopt.epoch, held, adopt.part)
            self._out.append(Send(sender, adopted))

        self._follow(same, answer)

    def _follow(self, places: list[Place], then: Callable[[float], None]) -> None:
        """Write that these follow another epoch. Those whose block turns out to be bad are reset,
        and the others written again, as they are by then."""
        terms = [coded.term for coded, _ in places]
        undo = LogWrite()

        def again(_stripes: tuple[int, ...]) -> None:
            alive = [p for p, term in zip(places, terms, strict=True) if p.coded.term == term]
            self._follow(alive, then)

        writes = tuple(
            StripeWrite(coded.stripe, coded.meta(), source=member, undo=undo)
            for coded, member in places
        )
        self._journal.commit(writes, then, again)

    def _go_back(self, coded: Coded, member: int, epoch: int, version: int) -> None:
        ring = coded.undo.get(member, deque())
        applied = coded.vector[member]
        undone: list[Mark] = []
        while applied.version > version:
            if not ring or ring[-1].to != applied.version:
                self.reset(coded, "undo-ring-too-short")
                return
            entry = ring.pop()
            undone.extend(entry.marks)
            applied = replace(applied, version=entry.start)
            self._undo(coded, member, entry)
        sessions = applied.sessions.remove(undone)
        coded.vector[member] = replace(applied, epoch=epoch, sessions=sessions)
        undo = LogWrite(cut_to=version)
        write = StripeWrite(coded.stripe, coded.meta(), source=member, undo=undo)
        self._write(coded, member, write, lambda: None)

    def _undo(self, coded: Coded, member: int, entry: Entry) -> None:
        """XOR is its own inverse. The meta follows in the next commit of the same batch."""
        self._journal.hold(
            StripeWrite(
                coded.stripe,
                coded.meta(),
                rows=entry.rows,
                delta=self._factor(coded, member, entry),
            )
        )

    # --- starting again

    def reset(self, coded: Coded, why: str) -> None:
        """F5: forget everything of this stripe and collect it anew."""
        coded.term += 1
        coded.vector, coded.undo, coded.durable = {}, {}, {}
        self.incomplete[coded.stripe] = coded
        self._out.append(Note(why, Block(coded.stripe, coded.position)))
        coded.emptied, term = False, coded.term

        def emptied(_now: float) -> None:
            coded.emptied = coded.emptied or coded.term == term

        self._journal.commit((StripeWrite(coded.stripe, coded.meta(), reset=True),), emptied)

    def ask(self, now: float) -> None:
        """Ask owners for what is missing, so much at a time; repeated until nothing is."""
        for stripe in list(islice(self.incomplete, self._joins_max)):
            if not self.pace.is_free(now):
                return
            coded = self.incomplete[stripe] = self.incomplete.pop(stripe)  # the others' turn comes
            for position in range(self.layout.k):
                if self._join(coded, position) and position not in coded.vector:
                    self.pace.take(self.layout.extent_of(stripe).rows)

    def _join(self, coded: Coded, position: int) -> bool:
        """Ask the owner of a block that is not in here, or may not be; False: it is."""
        applied = coded.vector.get(position)
        if not coded.emptied or (applied is not None and applied.joined):
            return False
        have = None if applied is None else (applied.epoch, applied.version)
        block = Block(coded.stripe, position)
        join = ms.Join(block, coded.position, coded.term, have)
        self._out.append(Send(self.layout.shard_of(*block), join))
        return True

    def snapshot(self, told: ms.Snapshot, sender: Hashable) -> None:
        """Recovery (6): include a block as its owner had it at the watermark."""
        coded = self.blocks[told.block.stripe]
        member = told.block.position
        if coded.term != told.term or member in coded.vector or self._outdated(told):
            return
        coded.vector[member] = Applied(
            told.epoch, told.version, joined=True, sessions=told.sessions
        )
        self._note_whole(coded)
        entry = Entry(0, told.version, told.rows, told.data)
        self._write(
            coded,
            member,
            StripeWrite(
                coded.stripe,
                coded.meta(),
                rows=told.rows if len(told.rows) else None,
                delta=self._factor(coded, member, entry) if len(told.rows) else None,
            ),
            lambda: self._ack(coded, told.block, told.epoch, sender),
        )

    def joined(self, told: ms.Joined, sender: Hashable) -> None:
        """What this block has of `told.block` was right all along."""
        coded = self.blocks[told.block.stripe]
        member = told.block.position
        applied = coded.vector.get(member)
        if coded.term != told.term or applied is None or applied.joined or self._outdated(told):
            return
        if (applied.epoch, applied.version) != (told.epoch, told.version):
            return
        coded.vector[member] = replace(applied, joined=True)
        self._note_whole(coded)
        self._write(
            coded,
            member,
            StripeWrite(coded.stripe, coded.meta()),
            lambda: self._ack(coded, told.block, told.epoch, sender),
        )

    def mismatch(self, told: ms.Mismatch) -> None:
        """What this block has is of no use."""
        coded = self.blocks[told.block.stripe]
        if coded.term == told.term:
            self.reset(coded, "parity-reset")

    def _outdated(self, told: ms.Snapshot | ms.Joined) -> bool:
        """Whether its sender was replaced; if not, those before it were."""
        if self.is_fenced(told.block, told.epoch):
            return True
        source = self.layout.shard_of(*told.block)
        if told.epoch > self.fences.get(source, 0):
            self.fences[source] = told.epoch
            self._journal.hold(FenceWrite(source, told.epoch))
        return False

    def _write(
        self, coded: Coded, member: int, write: StripeWrite, then: Callable[[], None]
    ) -> None:
        term, version = coded.term, coded.vector[member].version

        def done(_now: float) -> None:
            if coded.term == term:
                coded.durable[member] = version
                then()

        self._journal.commit((write,), done)

    def failed(self, stripes: tuple[int, ...]) -> None:
        """A row of these blocks is gone or fails its crc: nothing can be added to it (F10)."""
        for stripe in stripes:
            self.reset(self.blocks[stripe], "parity-row-bad")

    def is_whole(self, first: int = 0) -> bool:
        """Whether every parity block from stripe `first` on includes all its members."""
        return first >= self.layout.stripes or all(stripe < first for stripe in self.incomplete)

"""Pushes: admission, one round after the other, commit (facts ecrm C5 W1, W2).

A round takes the pushes that wait, in order, reads their rows, applies them one after the other and
commits all of it at once: rows, versions, outbox, sessions. The next round begins right then: the
disk performs its reads after this commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import partial

import numpy as np

from proa.store.gf256 import Bytes
from proa.store.protocol import messages as ms
from proa.store.protocol.actions import Found, Send
from proa.store.protocol.heard import Heard
from proa.store.protocol.layout import Block
from proa.store.protocol.log import Entry, Mark, Rows
from proa.store.protocol.owned import Owned, OwnerState, Waiting
from proa.store.protocol.rowset import RowSet
from proa.store.protocol.shipping import Shipping
from proa.store.protocol.storage import BlockWrite, LogWrite

Key = tuple[int, int]
Update = Callable[[Block, Rows, Bytes, Bytes], Bytes]


class Pushes:
    """`update(block, rows, old, payload)`: the new rows, uint8 [rows, width], bit by bit the same
    for the same arguments: the optimiser. `want(owned, rows)`: decode these rows first."""

    def __init__(
        self,
        state: OwnerState,
        shipping: Shipping,
        update: Update,
        want: Callable[[Owned, RowSet], None],
    ) -> None:
        self._state = state
        self._shipping = shipping
        self._update = update
        self._want = want
        self._heard = Heard(state.config.workers_kept, state.config.worker_silent_s)
        self._queue: deque[Waiting] = deque()
        self._under_way: dict[Key, Waiting] = {}
        self._round: tuple[int, list[Waiting], dict[Block, Rows]] | None = None

    def arrived(self, push: ms.Push, sender: Hashable, now: float) -> None:
        """W1, or why not. A push that is under way is answered once, when it is done: whoever sent
        it last, for who asks again does not listen to the answer to the first time."""
        self._heard.note(push.worker)
        why = self._refusal(push, now)
        if why is not None:
            self._refuse(push, sender, why)
        elif not self._is_known(push, sender):
            waiting = Waiting(push, sender, len(push.parts))
            self._queue.append(waiting)
            self._under_way[push.worker, push.step] = waiting
            self.pump(now)

    def _is_known(self, push: ms.Push, sender: Hashable) -> bool:
        waiting = self._under_way.get((push.worker, push.step))
        if waiting is None or not waiting.blocks:
            return False
        waiting.sender = sender
        return True

    def _refusal(self, push: ms.Push, now: float) -> ms.Refusal | None:
        state = self._state
        if not state.is_open(now):
            return ms.Refusal.NOT_OWNER
        if push.epoch != state.epoch:
            return ms.Refusal.STALE_MAP
        blocks = {part.block for part in push.parts}
        if push.step < 0 or not 0 < len(blocks) == len(push.parts):
            return ms.Refusal.INVALID
        if not all(map(self._is_valid, push.parts)):
            return ms.Refusal.INVALID
        full = any(
            len(state.blocks[part.block].outbox) >= state.config.outbox_max for part in push.parts
        )
        if full or len(self._queue) >= state.config.pushes_max:
            return ms.Refusal.OVERLOADED
        return None

    def _is_valid(self, part: ms.Part) -> bool:
        rows = part.rows
        if part.block not in self._state.blocks:
            return False
        extent = self._state.layout.extent_of(part.block.stripe)
        return (
            0 < len(rows) == len(part.payload)
            and rows[0] >= 0
            and rows[-1] < extent.rows
            and bool((rows[1:] > rows[:-1]).all())
            and part.payload.shape[1:] in ((extent.payload,), (extent.width + 1,))
        )

    def _sets(self, part: ms.Part) -> bool:
        """Whether it brings whole records, which need nothing that was there before."""
        width = self._state.layout.extent_of(part.block.stripe).width
        return part.payload.shape[1] == width + 1

    def _refuse(
        self,
        push: ms.Push,
        sender: Hashable,
        why: ms.Refusal,
        lost: tuple[tuple[Block, int], ...] = (),
    ) -> None:
        refused = ms.PushRefused(push.worker, push.step, why, lost)
        self._state.out.append(Send(sender, refused))

    def tick(self, now: float) -> None:
        """Time passes."""
        self._heard.tick(now)

    # --- rounds

    def pump(self, now: float) -> None:
        """Begin a round if none is under way and something can be done."""
        if self._round is not None or not self._queue:
            return
        chosen: list[Waiting] = []
        stay: deque[Waiting] = deque()
        while self._queue:
            waiting = self._queue.popleft()
            if len(chosen) < self._state.config.round_max and self._is_ready(waiting):
                chosen.append(waiting)
            elif waiting.blocks:
                stay.append(waiting)
        self._queue = stay
        if not chosen:
            return
        rows: dict[Block, list[Rows]] = {}
        for waiting in chosen:
            for part in self._parts(waiting.push):
                rows.setdefault(part.block, []).append(part.rows)
        asked = {
            block: found[0] if len(found) == 1 else np.unique(np.concatenate(found))
            for block, found in rows.items()
        }
        self._round = (0, chosen, asked)
        if asked:
            self._round = (self._state.journal.fetch(asked), chosen, asked)
        else:
            self._apply({}, now)

    def _is_ready(self, waiting: Waiting) -> bool:
        """Whether its rows are all there. Lost ones: it is refused; pending ones: it waits."""
        push, ready = waiting.push, True
        lost: list[tuple[Block, int]] = []
        for part in self._parts(push):
            owned = self._state.blocks[part.block]
            if not owned.pending and not owned.lost:
                continue
            rows = RowSet.of_rows(part.rows)
            if not self._sets(part):
                lost.extend((part.block, row) for row in rows & owned.lost)
            if rows & owned.pending:
                ready = False
                self._want(owned, rows & owned.pending)
        if lost:
            self._refuse(push, waiting.sender, ms.Refusal.DATA_LOST, tuple(lost))
            waiting.blocks = 0
            return False
        return ready

    def _parts(self, push: ms.Push) -> list[ms.Part]:
        """The parts that are not in their blocks yet (F2)."""
        blocks = self._state.blocks
        return [
            part
            for part in push.parts
            if not blocks[part.block].sessions.includes(push.worker, push.step)
        ]

    def fetched(self, ticket: int, found: Found, now: float) -> None:
        """The old rows came: W1's arithmetic and W2."""
        assert self._round is not None
        assert self._round[0] == ticket
        _, chosen, asked = self._round
        bad = False
        for block, (_, missing) in found.items():
            rows = RowSet.of_rows(asked[block][sorted(missing)]) - self._state.blocks[block].lost
            if rows:
                # Touched but absent, or a wrong crc: decoded like a lost row, never taken as zero.
                bad = True
                self._state.decode(block, rows)
        if bad:
            self._round = None
            self._queue.extendleft(reversed(chosen))
            self.pump(now)
        else:
            self._apply(found, now)

    def _apply(self, found: Found, now: float) -> None:
        assert self._round is not None
        _, chosen, asked = self._round
        self._round = None
        data = {block: rows.copy() for block, (rows, _) in found.items()}
        marks: dict[Block, list[Mark]] = {block: [] for block in data}
        for push in (waiting.push for waiting in chosen):
            for part in self._parts(push):
                where = np.searchsorted(asked[part.block], part.rows)
                rows = data[part.block]
                rows[where] = self._update(part.block, part.rows, rows[where], part.payload)
                marks[part.block].append(Mark(push.worker, push.step, push.floor))
        writes = [
            self._advance(block, asked[block], found[block][0], data[block], tuple(marks[block]))
            for block in data
        ]
        for waiting in chosen:
            self._wait(waiting)
        for waiting in chosen:
            for part in waiting.push.parts:
                self._shipping.settle(self._state.blocks[part.block], now)
        durable = {block: self._state.blocks[block].version for block in data}
        if writes:
            self._state.journal.commit(tuple(writes), partial(self._written, durable))
        self.pump(now)

    def _advance(
        self, block: Block, rows: Rows, old: Bytes, new: Bytes, marks: tuple[Mark, ...]
    ) -> BlockWrite:
        owned = self._state.blocks[block]
        marks = (*self._heard.to_forget(owned.sessions), *marks)
        entry = Entry(owned.version, owned.version + 1, rows, old ^ new, marks)
        owned.version += 1
        owned.sessions = owned.sessions.add(marks)
        mended = RowSet.of_rows(rows) & owned.lost
        if mended:
            # What they were is in no parity: none can follow, and nobody may go back beyond this.
            owned.lost -= mended
            owned.outbox.clear()
            self._shipping.remake(owned)
            log = LogWrite(trim_to=owned.version)
        else:
            owned.outbox.append(entry)
            log = LogWrite(append=entry, trim_to=owned.trim())
        return BlockWrite(block, owned.meta(), rows, new, log)

    def _wait(self, waiting: Waiting) -> None:
        """It is answered when every one of its blocks is safe in the version it has now."""
        self._forget_old()
        for part in waiting.push.parts:
            owned = self._state.blocks[part.block]
            owned.waiting.append((owned.version, waiting))
            self._state.busy[part.block] = owned

    def _forget_old(self) -> None:
        if len(self._under_way) > 2 * self._state.config.pushes_max:
            self._under_way = {key: w for key, w in self._under_way.items() if w.blocks}

    def _written(self, durable: dict[Block, int], now: float) -> None:
        """W2 is done: W3, and W4 where there is no parity to wait for."""
        for block, version in durable.items():
            owned = self._state.blocks[block]
            owned.durable = version
            self._shipping.ship(owned, now)
            self._shipping.settle(owned, now)

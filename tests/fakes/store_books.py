"""What really happened to every block: the history that an oracle holds against the store.

The books compute all contents themselves, from the pushes, and share nothing with the protocol but
its messages. A block's history is a tree: an owner of a later epoch goes on from some version of an
earlier one, and what the earlier owner wrote after that is a dead branch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from proa.store.protocol import messages as ms
from proa.store.protocol import storage as st
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import FORGET
from proa.store.protocol.reading import Answer

Key = tuple[int, int]  # worker, step


class Violation(AssertionError):
    """The store broke a promise."""


@dataclass(slots=True)
class Version:
    """The content after `applied`, in that order."""

    content: np.ndarray
    applied: tuple[Key, ...]


@dataclass(slots=True)
class Branch:
    """What the owner of one epoch wrote: from version `base` of the branch `parent`."""

    parent: int
    base: int
    versions: dict[int, Version] = field(default_factory=dict)


def zero(layout: Layout, block: Block) -> np.ndarray:
    extent = layout.extent_of(block.stripe)
    return np.zeros((extent.rows, extent.width), np.uint8)


class Books:
    """`update` is the optimiser, the same function as the owners have."""

    def __init__(
        self,
        layout: Layout,
        update: Callable[[Block, np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        self.layout = layout
        self.update = update
        self.payloads: dict[Key, ms.Push] = {}
        self.acked: dict[Block, set[Key]] = {}
        self.lost: dict[Block, set[int]] = {}
        self.branches: dict[Block, dict[int, Branch]] = {}
        self.extend(layout)

    def extend(self, layout: Layout) -> None:
        """Stripes were added, all zero."""
        for block in (Block(s, p) for s in range(layout.stripes) for p in range(layout.k)):
            if block not in self.branches:
                first = Version(zero(layout, block), ())
                self.branches[block] = {0: Branch(-1, 0, {0: first})}
                self.acked[block], self.lost[block] = set(), set()
        self.layout = layout

    def find(self, block: Block, epoch: int, version: int) -> Version:
        branches = self.branches[block]
        while epoch >= 0:
            branch = branches.get(epoch)
            if branch is None:
                raise Violation(f"{block}: nobody wrote under epoch {epoch}")
            if version > branch.base or branch.parent < 0:
                break
            epoch = branch.parent
        found = branch.versions.get(version)
        if found is None:
            raise Violation(f"{block}: there never was version {version} of epoch {epoch}")
        return found

    def included(self, block: Block, epoch: int, version: int) -> Version:
        """What parity has: it may follow an owner that has not written anything yet."""
        if epoch not in self.branches[block]:
            epoch = self._ancestor(block, epoch, version)
        return self.find(block, epoch, version)

    # --- owners

    def owner_wrote(self, write: st.BlockWrite, before: st.BlockMeta | None) -> None:
        """A commit of a data block reached a disk that had `before`."""
        block, meta = write.block, write.meta
        branches = self.branches[block]
        self.lost[block] |= meta.lost
        if write.reset and not meta.pending:
            nothing = Version(zero(self.layout, block), ())
            gone = Branch(-1, meta.version, {meta.version: nothing})
            branches.setdefault(meta.epoch, gone)
        elif write.reset:
            self._branch(block, meta, self._ancestor(block, meta.epoch, meta.version))
        elif before is None:
            self._branch(block, meta, 0)
        elif before.epoch != meta.epoch:
            self._branch(block, meta, before.epoch)
        if write.log.append is not None:
            entry = write.log.append
            parent = self.find(block, meta.epoch, entry.start)
            branches[meta.epoch].versions[entry.to] = self._next(block, parent, entry.marks)
        if write.rows is not None and len(write.rows):
            expected = self.find(block, meta.epoch, meta.version).content[write.rows]
            if not np.array_equal(expected, write.data):
                raise Violation(f"{block}: wrong bytes at {meta.epoch, meta.version}")

    def _ancestor(self, block: Block, before: int, version: int) -> int:
        """The latest earlier epoch that has this version: the one a rebuild must go on from."""
        for epoch in sorted(self.branches[block], reverse=True):
            if epoch < before:
                try:
                    self.find(block, epoch, version)
                except Violation:
                    continue
                return epoch
        raise Violation(f"{block}: goes on from version {version}, which never was")

    def _branch(self, block: Block, meta: st.BlockMeta, parent: int) -> None:
        branches = self.branches[block]
        branches.setdefault(meta.epoch, Branch(parent, meta.version))
        if meta.epoch == max(branches):  # else it is a ghost, on its own disk
            self.check_acked(block, meta.epoch, meta.version, self.acked[block], "recovery")

    def check_acked(
        self, block: Block, epoch: int, version: int, acked: set[Key], what: str
    ) -> None:
        if self.lost[block] or not acked:
            return
        missing = acked - set(self.included(block, epoch, version).applied)
        if missing:
            raise Violation(f"{block}: {what} lost the acknowledged push {min(missing)}")

    def _next(self, block: Block, parent: Version, marks: tuple) -> Version:
        content, applied = parent.content.copy(), parent.applied
        for mark in marks:
            if mark.step == FORGET:
                continue
            key = mark.worker, mark.step
            if key in applied:
                raise Violation(f"{block}: push {key} was applied twice")
            applied = (*applied, key)
            for part in self.payloads[key].parts:
                if part.block == block:
                    content[part.rows] = self.update(
                        block, part.rows, content[part.rows], part.payload
                    )
        return Version(content, applied)

    def acknowledged(self, done: ms.PushDone) -> None:
        """An owner said that this push is safe."""
        key = done.worker, done.step
        for part in self.payloads[key].parts:
            self.acked[part.block].add(key)

    # --- parity

    def parity_wrote(self, block: Block, meta: st.StripeMeta, content: np.ndarray) -> None:
        """Invariant I1: the bytes are those that the version vector promises."""
        for position, applied in meta.vector.items():
            member = Block(block.stripe, position)
            found = self.included(member, applied.epoch, applied.version).content
            factor = self.layout.coefficient(block.position, position)
            content = content ^ (found if factor == 1 else TIMES[factor][found])
        if content.any():
            raise Violation(f"{block}: parity is not that of its version vector")

    # --- readers

    def read(self, block: Block, rows: np.ndarray, answer: Answer, acked: set[Key]) -> None:
        """A client got this; `acked`: pushes acknowledged before it asked."""
        seen: list[int] = list(answer.later) + list(answer.lost)
        for piece in answer.pieces:
            seen.extend(piece.rows.tolist())
            if self.lost[block] & set(piece.rows.tolist()) and not piece.degraded:
                raise Violation(f"{block}: a lost row was answered")
            found = self.included(block, piece.epoch, piece.version)
            if not np.array_equal(found.content[piece.rows], piece.data):
                raise Violation(f"{block}: a read got bytes that never were")
            what = "a degraded read" if piece.degraded else "a read"
            self.check_acked(block, piece.epoch, piece.version, acked, what)
        if sorted(seen) != rows.tolist():
            raise Violation(f"{block}: asked for {rows}, answered {sorted(seen)}")


def russian_peasant(a: int, b: int) -> int:
    """a times b in GF(2^8), by no table of ours."""
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


TIMES = {
    factor: np.array([russian_peasant(factor, b) for b in range(256)], np.uint8)
    for factor in (1, 2, 4, 8, 16)
}

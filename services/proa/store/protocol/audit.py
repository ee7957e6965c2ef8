"""Whether a parity block is the sum of its data: what a scrubber asks (facts ecrm C7 F10)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from proa.store import gf256
from proa.store.protocol.layout import Block, Layout
from proa.store.protocol.log import Rows, between
from proa.store.protocol.storage import BlockView, StripeView


def compare(
    layout: Layout, block: Block, parity: StripeView, members: Mapping[int, BlockView], rows: Rows
) -> Rows | None:
    """The rows for which parity block `block` is not the sum of its members at the versions that it
    includes; erasures are left out. Members are read after the parity. None: the views do not fit
    together, or it is being collected: ask again later."""
    vector = parity.meta.vector
    if set(vector) != set(range(layout.k)) or not all(a.joined for a in vector.values()):
        return None
    total = parity.data
    known = np.ones(len(rows), np.bool_)
    known[sorted(parity.missing)] = False
    for position, included in vector.items():
        view = members.get(position)
        if view is None or view.meta.epoch != included.epoch:
            return None
        if included.version > view.meta.version:
            return None
        width = view.data.shape[1]
        change = between(view.log, included.version, view.meta.version, rows, width)
        if change is None:
            return None
        factor = layout.coefficient(block.position, position)
        total = total ^ gf256.scaled(factor, view.data ^ change)
        known[sorted(view.missing)] = False
    wrong: Rows = rows[total.any(axis=1) & known]
    return wrong

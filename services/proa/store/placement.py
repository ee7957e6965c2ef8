"""Which shard follows which on the ring, so that no stripe has two blocks in one failure domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from proa.errors import InvalidRequest


def ring_of(domains: Sequence[str], blocks: int) -> tuple[int, ...]:
    """An order of the shards in which any `blocks` that follow each other, the last ones and the
    first ones too, are in as many failure domains.

    domains: of each shard, by its number. With fewer domains than `blocks` that cannot be: then the
    shards of one domain are as far apart as can be. Errors: InvalidRequest if there are domains
    enough, but one of them has too many shards.
    """
    sizes = Counter(domains)
    if not domains:
        raise InvalidRequest("domains: there is no shard")
    largest, size = max(sizes.items(), key=lambda item: (item[1], item[0]))
    if blocks <= len(sizes) and size * blocks > len(domains):
        raise InvalidRequest(
            f"domains: {largest!r} has {size} of {len(domains)} shards; with k + r = {blocks} no"
            f" domain may have more than {len(domains) // blocks}, or two blocks of a stripe meet"
        )
    # `size` rounds, filled column by column, the largest domain first: the shards of a domain are
    # in different rounds, and where they change columns they skip one.
    order = sorted(range(len(domains)), key=lambda s: (-sizes[domains[s]], domains[s], s))
    rounds: list[list[int]] = [[] for _ in range(size)]
    for place, shard in enumerate(order):
        rounds[place % size].append(shard)
    return tuple(shard for one in rounds for shard in one)

"""A process that pushes to a real store until it is killed: python store_pusher.py ADDRESS TABLE
[INFLIGHT], so many steps at a time.

Step s adds 4^(s mod 8) to every element of the rows it pushes to, all rows of the table: from the
digits of a sum it can be read which of the last eight steps are in it, and how often.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count

import numpy as np

from proa.store.client import StoreClient

DIGITS, BASE = 8, 4


def gradient(step: int) -> float:
    """What step `step` takes off every element, at a learning rate of 1."""
    return float(BASE ** (step % DIGITS))


async def main(address: str, name: str, inflight: str = "4") -> None:
    async with StoreClient(address, timeout_s=60.0, inflight_max=int(inflight)) as client:
        table = await client.table(name)
        ids = np.arange(table.rows)
        acked = 0
        for step in count():
            sys.stdout.write(f"sent {step}\n")
            sys.stdout.flush()
            await client.push(
                {name: (ids, np.full((table.rows, table.dim), gradient(step), np.float32))}
            )
            floor = client._floor()
            if floor > acked:
                acked = floor
                sys.stdout.write(f"acked {acked}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""What the store demo trains, and when it kills what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from proa.store.initial import Initialiser
from proa.store.optimisers import RowWiseAdagrad

DIM = 64
WORKERS = 2
SHARDS = 4
K = 2
KILLED = 1  # the shard


@dataclass(frozen=True)
class Arm:
    """One way to train. killed: a shard is lost in mid-training; r: parity blocks of a stripe."""

    name: str
    label: str
    r: int
    killed: bool
    checkpoints: bool = False


ARMS = (
    Arm("clean", "no failure", r=1, killed=False),
    Arm("parity", "a shard killed, parity (k = 2, r = 1)", r=1, killed=True),
    Arm("checkpoint", "a shard killed, restart from a checkpoint (r = 0)", 0, True, True),
)


@dataclass(frozen=True)
class Plan:
    """rows: of each table. kill_at, checkpoint_every: in steps. batch: of each worker."""

    rows: tuple[int, ...]
    steps: int
    kill_at: int
    checkpoint_every: int
    batch: int
    seed: int
    learning_rate: float = 0.005
    embedding_rate: float = 0.05

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """Name -> options of `ParityStore.create_table`."""
        return {
            f"feature-{i:02}": {
                "rows": rows,
                "dim": DIM,
                "optimiser": RowWiseAdagrad(self.embedding_rate),
                "init": Initialiser(seed=self.seed),
            }
            for i, rows in enumerate(self.rows)
        }


def make_plan(*, seed: int, quick: bool) -> Plan:
    """26 tables, each a fifth larger than the one before. The checkpoint is just about half an
    interval old at the kill: what a failure at a random time costs in the mean."""
    if quick:
        return Plan(_rows(26, 60, 1.18), 60, 32, 20, batch=128, seed=seed)
    return Plan(_rows(26, 100, 1.2), 240, 130, 80, batch=256, seed=seed)


def _rows(count: int, first: int, factor: float) -> tuple[int, ...]:
    return tuple(round(first * factor**i) for i in range(count))

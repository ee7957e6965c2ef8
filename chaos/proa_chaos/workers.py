"""What a frontend says of a model's workers, for every place alike."""

from __future__ import annotations

from proa.api.v1.frontend_pb2 import ModelStatus
from proa_chaos.experiment import PROTECTIONS

QUARANTINED = "quarantined"


def not_up(status: ModelStatus) -> list[str]:
    """A line for each worker that gets no work."""
    return [f"worker {w.name} is {w.state}" for w in status.workers if w.state != "up"]


def in_quarantine(status: ModelStatus) -> list[str]:
    """Those of `not_up` that get none because they computed wrongly."""
    return [
        f"worker {w.name} is {w.state}"
        for w in status.workers
        if w.state.partition(":")[0] == "quarantined"
    ]


def protection_of(status: ModelStatus) -> str:
    """Its protection.mode; a frontend that does not tell checks nothing."""
    return status.protection if status.protection in PROTECTIONS else PROTECTIONS[0]

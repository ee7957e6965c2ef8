"""What an experiment on a model may say, and what one on a store may."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proa.spec.section import Section
from proa_chaos.experiment import PHASES, Workload
from proa_chaos.measures import SERVING_MEASURES, nothing
from proa_chaos.store.measures import STORE_MEASURES

DEADLINE_S, STORE_DEADLINE_S = 1.0, 30.0
STEP_HZ_MAX = 500.0  # of a worker without a rate
_NOT_FOR_STORES = (
    "model", "rateHz", "duringRateHz", "inflightMax", "queries", "inputs", "exact",
)  # fmt: skip


def steps_max(workload: Workload) -> float:
    """More steps a run on a store cannot make; workers go on during the recovery."""
    load = workload.store
    assert load is not None
    seconds = sum(map(workload.length_s, PHASES)) + workload.recovery_s
    return load.workers * (load.rate_hz or STEP_HZ_MAX) * seconds


def fits_its_kind(section: Section, spec: Mapping[str, Any]) -> None:
    """A rule of `spec`: keys, measures and actions are of one kind. Errors: SpecError."""
    of_store = spec["workload"].store is not None
    if of_store:
        _check_keys(section)
    kind, measures = (
        ("an experiment on a store", STORE_MEASURES)
        if of_store
        else ("an experiment on a model", SERVING_MEASURES)
    )
    for key in ("hypothesis", "guards"):
        for place, one in _items(section, key, spec):
            probe = one.probe if key == "guards" else one
            if probe.measure not in measures:
                raise place.error(f"{kind} does not measure {probe.measure!r}")
            if key == "guards" and measures[probe.measure] is nothing:
                raise place.error(f"{probe.measure!r} is not known while the faults act")
    for place, fault in _items(section, "faults", spec):
        if fault.on_shards != of_store and (fault.on_shards or fault.action == "bitflip"):
            raise place.error(f"{kind} has no such {fault.action}: its target is another system")
        if of_store and fault.action == "partition":
            raise place.error("a partition is between a frontend and its workers")


def _check_keys(section: Section) -> None:
    workload = section.child("workload")
    assert workload is not None
    for found in (*map(workload.child, _NOT_FOR_STORES), section.child("requires")):
        if found is not None:
            raise found.error("is of experiments on a model; this one is on a store")


def _items(section: Section, key: str, spec: Mapping[str, Any]) -> list[tuple[Section, Any]]:
    places = section.child(key)
    return list(zip(places.items(limit=len(spec[key])), spec[key], strict=True)) if places else []

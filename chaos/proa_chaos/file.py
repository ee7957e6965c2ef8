"""Experiment file -> Experiment. Strict: every error names file, line, key and limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from proa.spec.model import NAME
from proa.spec.readers import (
    NEEDED,
    Field,
    Reader,
    Rule,
    boolean,
    integer,
    list_of,
    number,
    one_of,
    table,
    text,
)
from proa.spec.section import Section, read_file
from proa_chaos.durations import duration
from proa_chaos.experiment import (
    ALL,
    PHASES,
    PROTECTIONS,
    Experiment,
    Guard,
    Probe,
    StoreLoad,
    Workload,
)
from proa_chaos.file_faults import FAULT, FAULT_S_MAX, NAMES
from proa_chaos.file_kinds import DEADLINE_S, STORE_DEADLINE_S, fits_its_kind, steps_max
from proa_chaos.measures import ERRORS, SERVING_MEASURES
from proa_chaos.store.measures import STORE_MEASURES

API_VERSION = "proa.dev/v1alpha1"
KIND = "ChaosExperiment"
RATE_HZ_MAX = 10_000.0
FAULTS_MAX, PROBES_MAX = 32, 64
REQUESTS_MAX = 1_000_000  # each is kept until the report is written


def experiment_schema() -> dict[str, Any]:
    """JSON Schema (draft-07) of the file, for editors; `load_experiment` checks more."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", **EXPERIMENT.schema}


def load_experiment(path: Path) -> Experiment:
    """Read and check an experiment file. Errors: SpecError with file, line, key and limit."""
    return replace(EXPERIMENT(read_file(path)), path=path)


# --- what is expected

_MEASURES = tuple(dict.fromkeys((*SERVING_MEASURES, *STORE_MEASURES)))
_NUMBER = number(-1e12, 1e12)


def _tolerance(section: Section, found: Probe) -> None:
    limits = found.at_most is not None or found.at_least is not None
    if (found.measure == ERRORS) != (found.allowed is not None) or (
        (found.measure == ERRORS) == limits
    ):
        raise section.error(
            "give atMost or atLeast; the measure `errors` takes `allowed` instead, alone"
        )
    if found.relative_to is not None and (not limits or found.relative_to == found.phase):
        raise section.error("relativeTo needs a limit, and another phase than `phase`")


_PROBE_FIELDS: tuple[Field[Any], ...] = (
    Field("measure", one_of(_MEASURES), NEEDED, "what is measured"),
    Field("phase", one_of((*PHASES, ALL)), "during", "when"),
    Field("atMost", _NUMBER, None, "upper limit"),
    Field("atLeast", _NUMBER, None, "lower limit"),
    Field("relativeTo", one_of(PHASES), None, "limits are factors of the measure in this phase"),
    Field("allowed", NAMES, None, "statuses that requests may fail with"),
)
PROBE = table(Probe, *_PROBE_FIELDS, rules=(Rule(_tolerance, {}),))
_GUARD_FIELDS = tuple(f for f in _PROBE_FIELDS if f.key not in ("phase", "relativeTo"))


def _guard(window: float, samples_min: int, **probe: Any) -> Guard:
    return Guard(Probe(**probe, phase="during"), window, samples_min)


GUARD = table(
    _guard,
    *_GUARD_FIELDS,
    Field("window", duration(0.2, 600), Guard.window_s, "looked at"),
    Field("samplesMin", integer(1, 1_000_000), Guard.samples_min, "requests, else it is mute"),
    rules=(Rule(lambda section, found: _tolerance(section, found.probe), {}),),
)


# --- the whole file


def _workload(
    phases: Mapping[str, float], deadline: float | None, recovery: float, **rest: Any
) -> Workload:
    lengths: Mapping[str, Any] = phases
    deadline_s = deadline or (STORE_DEADLINE_S if rest["store"] else DEADLINE_S)
    return Workload(**lengths, deadline_ms=deadline_s * 1000, recovery_s=recovery, **rest)


def _phases(before: float, during: float, after: float) -> Mapping[str, float]:
    return {"before_s": before, "during_s": during, "after_s": after}


PHASE_LENGTHS = table(
    _phases,
    Field("before", duration(0.1, 3600), Workload.before_s, "steady state"),
    Field("during", duration(0.1, 3600), Workload.during_s, "faults act"),
    Field("after", duration(0.1, 3600), Workload.after_s, "steady state again"),
)


def _rows_for_all(section: Section, found: StoreLoad) -> None:
    if found.rows < found.workers:
        raise section.error(f"rows = {found.rows} are too few for {found.workers} workers")


def _not_too_many(section: Section, found: Workload) -> None:
    if found.store is not None:
        count = steps_max(found)
    else:
        count = sum(found.rate_in(phase) * found.length_s(phase) for phase in PHASES)
    if count > REQUESTS_MAX:
        raise section.error(f"makes {count:.0f} requests; the limit is {REQUESTS_MAX}")


STORE = table(
    StoreLoad,
    Field("rows", integer(100, 10_000_000), StoreLoad.rows, "of the table"),
    Field("dim", integer(1, 8192), StoreLoad.dim, "of the table"),
    Field("batch", integer(1, 100_000), StoreLoad.batch, "rows of a step"),
    Field("workers", integer(1, 64), StoreLoad.workers, "that train, each its own rows"),
    Field("rateHz", number(0.1, 1000), None, "steps a second of each; left out: no limit"),
    rules=(Rule(_rows_for_all, {}),),
)
WORKLOAD = table(
    _workload,
    Field("model", text, None, "left out: the first that is served"),
    Field("rateHz", number(0.1, RATE_HZ_MAX), Workload.rate_hz, "requests a second"),
    Field("duringRateHz", number(0.1, RATE_HZ_MAX), None, "while faults act; left out: rateHz"),
    Field(
        "phases",
        PHASE_LENGTHS,
        _phases(Workload.before_s, Workload.during_s, Workload.after_s),
        "their lengths",
    ),
    Field("recovery", duration(0.1, 3600), Workload.recovery_s, "until all is ready again"),
    Field("deadline", duration(0.001, 600), None, "of a request (1s), of a step's push (30s)"),
    Field("inflightMax", integer(1, 100_000), Workload.inflight_max, "requests open at once"),
    Field("queries", integer(1, 4096), Workload.queries, "different ones"),
    Field(
        "inputs",
        Reader(lambda section: section.folder / text(section), text.schema),
        None,
        ".npz with inputs, and perhaps outputs and labels; left out: random queries",
    ),
    Field("exact", boolean, False, "refuse reconstructed answers"),
    Field("store", STORE, None, "rows of a store are trained instead"),
    rules=(Rule(_not_too_many, {}),),
)  # fmt: skip


def _values(**values: Any) -> Mapping[str, Any]:
    return values


def _faults_fit(section: Section, found: Mapping[str, Any]) -> None:
    places = section.child("faults")
    items = places.items(limit=FAULTS_MAX) if places else []
    seen: set[str] = set()
    for place, fault in zip(items, found["faults"], strict=True):
        if fault.name in seen:
            raise place.error(f"another fault is named {fault.name!r}, too")
        seen.add(fault.name)
        left_s = found["workload"].during_s - fault.at_s
        if (fault.duration_s or 0.01) > left_s:
            raise place.error(f"fault {fault.name!r} outlives the phase `during`")
        lasts_s = left_s if fault.duration_s is None else fault.duration_s
        if min(lasts_s, fault.every_s or lasts_s) > FAULT_S_MAX:
            raise place.error(f"a fault lasts {FAULT_S_MAX:g} s at most: give a duration")


def _some_hypothesis(section: Section, found: Mapping[str, Any]) -> None:
    if not found["hypothesis"]:
        raise section.error("the hypothesis is empty: nothing could be false")


REQUIRES = table(
    _values,
    Field("pool", one_of(("shared", "dedicated")), None, "redundancy.pool of the model"),
    Field("protection", one_of(PROTECTIONS), PROTECTIONS[0], "its protection.mode, at least"),
)
SPEC = table(
    _values,
    Field("title", text, NEEDED, "a line"),
    Field("description", text, NEEDED, "what the experiment teaches"),
    Field("tags", NAMES, (), "words to find it by"),
    Field("requires", REQUIRES, {}, "what the model must be like"),
    Field("workload", WORKLOAD, Workload(), "the load"),
    Field("faults", list_of(FAULT, FAULTS_MAX), (), "what is broken, and when"),
    Field("hypothesis", list_of(PROBE, PROBES_MAX), NEEDED, "what holds nevertheless"),
    Field("guards", list_of(GUARD, PROBES_MAX), (), "when to stop"),
    Field("expected", one_of(("Pass", "Fail")), "Pass", "the verdict that the library wants"),
    rules=(Rule(_faults_fit, {}), Rule(_some_hypothesis, {}), Rule(fits_its_kind, {})),
)
METADATA = table(_values, Field("name", NAME, NEEDED, "of the experiment"))


def _experiment(metadata: Mapping[str, str], spec: Mapping[str, Any], **_: str) -> Experiment:
    rest = {key: value for key, value in spec.items() if key != "requires"}
    return Experiment(name=metadata["name"], **spec["requires"], **rest)


EXPERIMENT = table(
    _experiment,
    Field("apiVersion", one_of((API_VERSION,)), NEEDED, "of this format"),
    Field("kind", one_of((KIND,)), NEEDED, "of document"),
    Field("metadata", METADATA, NEEDED, "its name"),
    Field("spec", SPEC, NEEDED, "the experiment"),
)

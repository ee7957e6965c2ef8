"""The profile of a program: every distinct product timed under every scheme, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from proa.errors import InvalidRequest
from proa.integrity.profile import choice, roofline
from proa.integrity.profile.choice import NONE
from proa.integrity.profile.layers import (
    Product,
    batch_range,
    calls_of,
    example_inputs,
    model_key,
    products_of,
)
from proa.integrity.profile.machine import (
    Sizes,
    best_of,
    device_of,
    measure_machine,
    timer_of,
)
from proa.integrity.profile.plan import FORMAT, Device, ModelKey
from proa.integrity.profile.roofline import Machine, Use, Work
from proa.integrity.profile.timing import Effort, Timer, Timing, paired
from proa_kernels import KernelError, Plan, protect, verdict

DEFAULT_SCHEMES: Mapping[str, tuple[str, ...]] = {
    # In plain torch `tile` computes what `row` does.
    "cpu": ("row", "exact", "dup"),
    "cuda": ("row", "tile", "exact", "dup"),
}

_BATCH = 8


@dataclass(frozen=True)
class Options:
    """`batches` None: the least that the program takes, and 8 or the most. `also`: schemes that a
    plan may take although they cover less than `row`."""

    batches: tuple[int, ...] | None = None
    schemes: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    threads: int = 1
    device: str = "cpu"
    effort: Effort = field(default_factory=Effort)
    sizes: Sizes | None = None


@dataclass(frozen=True)
class Row:
    """One layer at one batch size. `like`: the layer whose times these are, of the same operator
    and shapes. `schemes`: without `none`. `scheme`: the cheapest here; `reason`: why there is
    none."""

    layer: str
    like: str
    op: str
    dtype: str
    shape: str
    work: Work
    base_us: float
    base_cpu_us: float | None
    schemes: Mapping[str, Timing]
    scheme: str
    reason: str
    use: Use

    @property
    def times(self) -> dict[str, float]:
        return {NONE: self.base_us, **{name: one.us for name, one in self.schemes.items()}}

    def to_dict(self) -> dict[str, Any]:
        work = {**asdict(self.work), "intensity": self.work.intensity}
        rest = {key: value for key, value in asdict(self).items() if key != "work"}
        return {**rest, **work}


@dataclass(frozen=True)
class Bucket:
    """One batch size. `program`: the whole, unprotected and as planned, timed in pairs, and what
    summing up the verdicts takes. `totals`: microseconds of all products together: unprotected,
    under each scheme, under the cheapest of each layer (`guided`), and as a packed program has them
    (`plan`)."""

    batch: int
    program: Mapping[str, float | None]
    rows: tuple[Row, ...]
    totals: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "program": dict(self.program),
            "totals": dict(self.totals),
            "layers": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True)
class Profile:
    """What `proa abft profile` found; `to_dict` is plan.json."""

    device: Device
    threads: int
    model: ModelKey
    machine: Machine
    allowed: tuple[str, ...]
    layers: Mapping[str, str]
    buckets: tuple[Bucket, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "device": {**asdict(self.device), "threads": self.threads},
            "model": asdict(self.model),
            "machine": asdict(self.machine),
            "allowed": list(self.allowed),
            "layers": dict(self.layers),
            "buckets": [bucket.to_dict() for bucket in self.buckets],
        }


def profile(program: ExportedProgram, sha256: str, options: Options) -> Profile:
    """Measure `program`, whose file has that hash. Raises InvalidRequest (also for weights that
    cannot be checked), NotSupported, EnvironmentLacks."""
    device = device_of(options.device)
    if device.kind != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, options.device)
    try:
        return _Profiler(program, sha256, device, options).run()
    except KernelError as exc:
        raise InvalidRequest(str(exc)) from exc


@dataclass(frozen=True)
class _Timed:
    """Times of a distinct product, as `layer` has it first."""

    layer: str
    timings: Mapping[str, Timing]


class _Profiler:
    def __init__(
        self, program: ExportedProgram, sha256: str, device: Device, options: Options
    ) -> None:
        self._program, self._sha256 = program, sha256
        self._device, self._options = device, options
        self._timer: Timer = timer_of(device)
        self._products = products_of(program)
        self._schemes = self._known_schemes()
        low, high = batch_range(program)
        self._batches = options.batches or tuple(sorted({low, max(low, min(high, _BATCH))}))

    def run(self) -> Profile:
        options = self._options
        with _threads(options.threads), torch.inference_mode():
            before = self._machine()
            timings = {batch: self._time(batch) for batch in self._batches}
            # What else runs on the machine hides its peak: two moments see more of it than one.
            machine = best_of(before, self._machine())
            tables = {batch: self._rows(batch, some, machine) for batch, some in timings.items()}
            layers = self._choose(list(tables.values()))
            buckets = self._buckets(tables, layers)
        return Profile(
            device=self._device,
            threads=options.threads,
            model=model_key(self._program, self._sha256),
            machine=machine,
            allowed=choice.allowed(self._schemes, options.also),
            layers=layers,
            buckets=buckets,
        )

    def _known_schemes(self) -> tuple[str, ...]:
        there = {scheme for one in self._products for scheme in one.schemes}
        asked = self._options.schemes
        for scheme in (*(asked or ()), *self._options.also):
            if scheme not in choice.SCHEMES:
                known = ", ".join(choice.SCHEMES)
                raise InvalidRequest(f"schemes: {scheme!r} is not one of {known}")
        return tuple(
            scheme for scheme in asked or DEFAULT_SCHEMES[self._device.kind] if scheme in there
        )

    def _machine(self) -> Machine:
        dtypes = [one.layer.dtype for one in self._products if one.layer.dtype]
        return measure_machine(self._device, dtypes, self._timer, self._options.sizes)

    def _time(self, batch: int) -> dict[str, _Timed]:
        """Each distinct product is timed once, at its first appearance."""
        firsts: dict[str, Product] = {}
        for one in self._products:
            firsts.setdefault(one.like(batch), one)
        inputs = example_inputs(self._program, batch, self._options.device)
        calls = calls_of(self._program, list(firsts.values()), inputs, self._schemes)
        return {
            like: _Timed(firsts[like].layer.layer, paired(some, self._timer, self._options.effort))
            for like, some in zip(firsts, calls, strict=True)
        }

    def _rows(self, batch: int, timed: Mapping[str, _Timed], machine: Machine) -> list[Row]:
        return [self._row(one, batch, timed[one.like(batch)], machine) for one in self._products]

    def _row(self, one: Product, batch: int, timed: _Timed, machine: Machine) -> Row:
        timings = timed.timings
        schemes = {name: timing for name, timing in timings.items() if name != NONE}
        times = {name: timing.us for name, timing in timings.items()}
        work, base = one.work(batch), timings[NONE]
        cmr = machine.cmr(one.layer.dtype)
        use = roofline.use_of(
            work,
            base.us,
            one.layer.dtype,
            machine,
            on_gpu=self._device.kind == "cuda",
            rows_columns=one.outputs(batch),
            batch_at_cmr=roofline.crossing(one.work(1), one.work(2), cmr) if cmr else None,
        )
        return Row(
            layer=one.layer.layer,
            like=timed.layer,
            op=one.layer.op,
            dtype=one.layer.dtype,
            shape=one.shape(batch),
            work=work,
            base_us=base.us,
            base_cpu_us=base.cpu_us,
            schemes=schemes,
            scheme=choice.cheapest(times, self._options.also),
            reason="" if one.site else one.layer.reason,
            use=use,
        )

    def _choose(self, tables: Sequence[Sequence[Row]]) -> dict[str, str]:
        """One scheme per checkable layer, for all batch sizes together."""
        found = {}
        for rows in zip(*tables, strict=True):
            if rows[0].schemes:
                batches = [row.times for row in rows]
                found[rows[0].layer] = choice.cheapest_over(batches, self._options.also)
        return found

    def _buckets(
        self, tables: Mapping[int, Sequence[Row]], layers: Mapping[str, str]
    ) -> tuple[Bucket, ...]:
        planned, _ = protect(self._program, Plan("correct", "none", layers))
        base, checked = (one.module(check_guards=False) for one in (self._program, planned))
        device = self._options.device
        one = torch.zeros(verdict.WIDTH, dtype=torch.float64, device=device)
        verdicts = [one] * max(1, len(layers))
        found = []
        for batch, rows in tables.items():
            inputs = example_inputs(self._program, batch, device)
            calls = {
                NONE: partial(base, *inputs),
                "plan": partial(checked, *inputs),
                "verdicts": partial(torch.ops.proa.merge_verdicts, verdicts),
            }
            timed = paired(calls, self._timer, self._options.effort)
            program = {
                "base_us": timed[NONE].us,
                "base_cpu_us": timed[NONE].cpu_us,
                "plan_us": timed["plan"].us,
                "overhead": timed["plan"].overhead,
                "cpu_overhead": timed["plan"].cpu_overhead,
                "verdicts_us": timed["verdicts"].us,
            }
            found.append(Bucket(batch, program, tuple(rows), self._totals(rows, layers)))
        return tuple(found)

    def _totals(self, rows: Sequence[Row], layers: Mapping[str, str]) -> dict[str, float]:
        also = self._options.also
        times = [row.times for row in rows]
        planned = [row.times[layers.get(row.layer, NONE)] for row in rows]
        return {
            NONE: sum(one[NONE] for one in times),
            **{scheme: choice.total(times, scheme, also) for scheme in self._schemes},
            "guided": choice.guided(times, also),
            "plan": sum(planned),
        }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

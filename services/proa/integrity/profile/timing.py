"""Paired timing: every repetition times each candidate once, so that what disturbs the machine
disturbs them alike. The median of the ratios to the first candidate is what counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Protocol

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Seconds of one or more calls: on the wall and, on a CPU, of this process."""

    wall_s: float
    cpu_s: float | None


class Timer(Protocol):
    """Prepares `count` calls in a row to be timed, again and again."""

    def prepare(self, call: Call, count: int) -> Callable[[], Sample]: ...


class CpuTimer:
    """Calls from Python, as an interpreter of the program makes them."""

    def prepare(self, call: Call, count: int) -> Callable[[], Sample]:
        def run() -> Sample:
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            for _ in range(count):
                call()
            return Sample(time.perf_counter() - wall_s, time.process_time() - cpu_s)

        return run


class CudaTimer:
    """Replays of a CUDA graph between two events; without a graph where a call cannot be captured,
    which it says by failing: such a call waits for the device in its midst."""

    def prepare(self, call: Call, count: int) -> Callable[[], Sample]:
        play = self._captured(call, count)
        begin, end = (_event() for _ in range(2))

        def run() -> Sample:
            begin.record()
            play()
            end.record()
            end.synchronize()
            return Sample(begin.elapsed_time(end) * 1e-3, None)

        return run

    @staticmethod
    def _captured(call: Call, count: int) -> Call:
        def eager() -> None:
            for _ in range(count):
                call()

        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                eager()
        except RuntimeError:
            torch.cuda.synchronize()
            return eager
        return graph.replay


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Effort:
    """`repeats`: interleaved repetitions. `sample_ms`: a sample takes at least so long."""

    repeats: int = 15
    sample_ms: float = 1.0
    calls_max: int = 1000


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call. `overhead`: median of the paired ratios to the first candidate,
    minus 1; `low`, `high`: their quartiles. `cpu_*`: process time, None on a GPU."""

    us: float
    overhead: float
    low: float
    high: float
    cpu_us: float | None
    cpu_overhead: float | None


def paired(calls: Mapping[str, Call], timer: Timer, effort: Effort) -> dict[str, Timing]:
    """Times of `calls`, each beside the first one."""
    names = list(calls)
    first = names[0]
    for call in calls.values():
        call()  # allocates, and compiles what has to be
    alone_s = min(timer.prepare(calls[first], 1)().wall_s for _ in range(3))
    count = round(effort.sample_ms * 1e-3 / alone_s) if alone_s > 0 else effort.calls_max
    count = min(max(1, count), effort.calls_max)
    runs = {name: timer.prepare(call, count) for name, call in calls.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for turn in range(effort.repeats):
        at = turn % len(names)
        for name in (*names[at:], *names[:at]):
            samples[name].append(runs[name]())
    return {name: _timing(samples[name], samples[first], count) for name in names}


def _timing(samples: list[Sample], base: list[Sample], count: int) -> Timing:
    ratios = [one.wall_s / other.wall_s for one, other in zip(samples, base, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    base_us = median(one.wall_s for one in base) / count * 1e6
    cpu_us, cpu_overhead = _cpu(samples, base, count)
    # Through the ratio, not from the median of its own samples: times of one layer add up.
    return Timing(
        us=base_us * median(ratios),
        overhead=median(ratios) - 1.0,
        low=low - 1.0,
        high=high - 1.0,
        cpu_us=cpu_us,
        cpu_overhead=cpu_overhead,
    )


def _cpu(
    samples: list[Sample], base: list[Sample], count: int
) -> tuple[float | None, float | None]:
    mine = [one.cpu_s for one in samples if one.cpu_s is not None]
    theirs = [one.cpu_s for one in base if one.cpu_s]
    if not mine or len(mine) != len(theirs):
        return None, None
    ratios = [one / other for one, other in zip(mine, theirs, strict=True)]
    return median(theirs) / count * 1e6 * median(ratios), median(ratios) - 1.0

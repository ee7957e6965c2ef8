"""Times by CUDA graphs: each form captured once, replays of all forms taking turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gpu_abft.variants import Call

REPLAY_US = 300.0  # a graph holds about as many calls as take this long
CALLS_MAX = 40
# What a call takes at least, for that alone: about half of an H200, and its launch.
FLOPS_PER_US, BYTES_PER_US, LAUNCH_US = 4e8, 2.5e6, 3.0
# Longer than the host needs to send a graph: the kernels then follow the first event at once.
SLEEP_CYCLES = 200_000


def calls_in_graph(flops: float, moved: float, sets: int) -> int:
    """Of one product in a graph: by its size alone, so that it is the same for all forms. What a
    replay costs besides is then divided by the same number. A multiple of `sets` of operands."""
    once_us = LAUNCH_US + max(flops / FLOPS_PER_US, moved / BYTES_PER_US)
    wanted = min(CALLS_MAX, REPLAY_US / once_us)
    return max(1, -(-int(wanted) // sets)) * sets


class Graph:
    """`count` calls captured, one after another, in turns of `calls`: they may have operands of
    their own each, so that weights come from memory and not from the cache."""

    def __init__(self, calls: Sequence[Call], count: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self.count = count
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for at in range(count):
                calls[at % len(calls)]()
        self.graph.replay()
        torch.cuda.synchronize()

    def time_us(self) -> float:
        """Of one call, in one replay."""
        torch.cuda._sleep(SLEEP_CYCLES)  # noqa: SLF001  # no public name
        return self._events(self.graph.replay) / self.count

    @staticmethod
    def _events(work: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return 1000.0 * float(start.elapsed_time(end))


class Direct:
    """The same without a GPU, for a run at toy sizes: its times mean nothing."""

    def __init__(self, calls: Sequence[Call], count: int) -> None:
        self._calls, self.count = calls, count

    def time_us(self) -> float:
        """Of the first call."""
        began = time.perf_counter()
        self._calls[0]()
        return 1e6 * (time.perf_counter() - began)


def timed(calls: Sequence[Call], count: int, device: str) -> Graph | Direct:
    """`calls`, `count` in all, ready to be timed on `device`, cuda or cpu."""
    return Graph(calls, count) if device == "cuda" else Direct(calls, count)


def paired(graphs: Mapping[str, Graph | Direct], rounds: int) -> dict[str, np.ndarray]:
    """Times in us `[rounds]` of each form, one of each in every round."""
    times = {name: np.empty(rounds) for name in graphs}
    for at in range(rounds):
        for name, graph in graphs.items():
            times[name][at] = graph.time_us()
    return times


def ratio(times: Mapping[str, np.ndarray], name: str, base: str) -> float:
    """Median of the rounds' ratios: a change of clock within a round is small."""
    return float(np.median(times[name] / times[base]))

"""Times by CUDA graphs: each form captured once, replays of all forms taking turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gpu_abft.variants import Call

REPLAY_US_MIN = 300.0  # a graph holds as many calls as take this long
CALLS_MAX = 40


class Graph:
    """`calls` captured, one after another: they may have operands of their own each, so that
    weights come from memory and not from the cache."""

    def __init__(self, calls: Sequence[Call]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        once_us = self._events(lambda: [call() for call in calls]) / len(calls)
        rounds = int(min(CALLS_MAX, max(len(calls), REPLAY_US_MIN / max(once_us, 1.0))))
        self.count = -(-rounds // len(calls)) * len(calls)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for at in range(self.count):
                calls[at % len(calls)]()
        self.graph.replay()
        torch.cuda.synchronize()

    def time_us(self) -> float:
        """Of one call, in one replay."""
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

    count = 1

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls

    def time_us(self) -> float:
        """Of the first call."""
        began = time.perf_counter()
        self._calls[0]()
        return 1e6 * (time.perf_counter() - began)


def timed(calls: Sequence[Call], device: str) -> Graph | Direct:
    """`calls` ready to be timed on `device`, cuda or cpu."""
    return Graph(calls) if device == "cuda" else Direct(calls)


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

"""`python -m proa_chaos.local.keeper ORDER`: holds one fault on a process, and ends it by itself.

A process of its own, so that a fault of the operating system ends when its time is up, or at once
when the runner is gone: whatever happens to the runner, its end of our stdin closes. It says
`ready`, waits for `go SECONDS`, says `on`, and exits once the fault has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from proa.errors import Unavailable
from proa.local.priority import kill
from proa.local.run_file import read_run
from proa.local.session import Family, start_ticks

TTL_S_MAX = 600.0
GRACE_S = 30.0  # of a process that is drained, as of a pod
_LOOK_S = 0.05
_SLICE_S = 0.05
GO = "go"


class Deed(Protocol):
    """A fault: begun once, looked after every 50 ms, ended once."""

    def begin(self, end_s: float) -> None: ...
    def look(self) -> None: ...
    def end(self) -> None: ...


class Stop:
    """SIGSTOP to processes and all they started; SIGCONT at the end. `processes`: their pids, and
    when they began (`start_ticks`)."""

    def __init__(self, processes: Sequence[tuple[int, int]]) -> None:
        self._processes = [(pid, ticks, Family(pid)) for pid, ticks in processes]

    def begin(self, _end_s: float) -> None:
        self._signal(signal.SIGSTOP)

    def look(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid, ticks, family in self._processes:
            if start_ticks(pid) == ticks:  # else its supervisor has replaced it
                family.signal(number)


class Kill:
    """SIGKILL to processes of `run_dir` and all they started, again whenever they come back."""

    def __init__(self, run_dir: str, names: Sequence[str]) -> None:
        self._run_dir, self._names = Path(run_dir), names

    def begin(self, _end_s: float) -> None:
        self.look()

    def look(self) -> None:
        for name in self._names:
            pid = pid_of(self._run_dir, name)
            if pid is not None:
                kill(Family(pid).members())

    def end(self) -> None:
        """Their supervisor starts them."""


class Drain:
    """SIGTERM to a process of `proa up`, as an eviction: it ends in its own time, and what its
    supervisor starts in its place is killed until the end."""

    def __init__(self, run_dir: str, name: str) -> None:
        self._run_dir, self._name = Path(run_dir), name
        self._leaving: int | None = None
        self._grace_end_s = 0.0

    def begin(self, _end_s: float) -> None:
        self._leaving = self._pid()
        self._grace_end_s = now_s() + GRACE_S
        if self._leaving is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leaving, signal.SIGTERM)

    def look(self) -> None:
        pid = self._pid()
        if pid is not None and (pid != self._leaving or now_s() > self._grace_end_s):
            kill(Family(pid).members())

    def end(self) -> None:
        """Its supervisor starts it."""

    def _pid(self) -> int | None:
        return pid_of(self._run_dir, self._name)


class Hog:
    """Busy processes, each `load` percent of the time. They end by themselves, too."""

    def __init__(self, workers: int, load: int) -> None:
        self._workers, self._load = workers, load
        self._pids: list[int] = []

    def begin(self, end_s: float) -> None:
        parent = os.getpid()
        for _ in range(self._workers):
            pid = os.fork()
            if pid == 0:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_DFL)  # the keeper's would end its siblings
                burn(end_s, parent, self._load)
                os._exit(0)
            self._pids.append(pid)

    def look(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def pid_of(run_dir: Path, name: str) -> int | None:
    """Of a process of `proa up`; None: it is down, or `proa up` itself has gone."""
    with contextlib.suppress(Unavailable):
        return next((p.pid for p in read_run(run_dir).processes if p.name == name), None)
    return None


def burn(end_s: float, parent: int, load: int) -> None:
    """Use `load` percent of a CPU until `end_s`, or until `parent` is gone."""
    while now_s() < end_s and os.getppid() == parent:
        busy_until = time.perf_counter() + _SLICE_S * load / 100
        while time.perf_counter() < busy_until:
            pass
        time.sleep(_SLICE_S * (100 - load) / 100)


def now_s() -> float:
    """Seconds that no adjustment of the clock moves."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def make(order: Mapping[str, Any]) -> Deed:
    """The deed of an order: its `deed`, and the arguments of that."""
    deeds: dict[str, Callable[..., Deed]] = {"stop": Stop, "kill": Kill, "drain": Drain, "hog": Hog}
    arguments = {key: value for key, value in order.items() if key != "deed"}
    return deeds[order["deed"]](**arguments)


def main(argv: list[str]) -> int:
    """Carry out one order; 0 when the fault has ended, or was never wanted."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    deed = make(json.loads(argv[1]))
    _say("ready")
    word, _, ttl = sys.stdin.readline().strip().partition(" ")
    if word != GO:
        return 0
    end_s = now_s() + min(float(ttl), TTL_S_MAX)
    try:
        deed.begin(end_s)
        _say("on")
        while (left_s := end_s - now_s()) > 0 and not _told(min(left_s, _LOOK_S)):
            deed.look()
    finally:
        deed.end()
    return 0


def _told(wait_s: float) -> bool:
    """Whether anything came, or the runner went, within `wait_s`."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _say(word: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(word + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv))

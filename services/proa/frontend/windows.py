"""When faults acted: those that others announced, and those of this process's own table."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from proa.api.v1 import faults_pb2, frontend_pb2
from proa.errors import InvalidRequest, Overloaded
from proa.runtime.faults import TEXT_BYTES_MAX, TTL_MS_MAX

log = logging.getLogger(__name__)

WINDOWS_MAX = 256
KEPT_S = 600.0
TARGET_BYTES_MAX = 253
ANYTHING = "all workers"
# An own fault in the words of an experiment.
_ACTIONS = {
    faults_pb2.DELAY: "slow",
    faults_pb2.PAUSE: "pause",
    faults_pb2.ERROR: "error",
    faults_pb2.DROP: "drop",
}


@dataclass(slots=True)
class Window:
    """One fault; times in seconds since 1970. `own`: of this process's table, not announced."""

    id: str
    action: str
    target: str
    begin_s: float
    end_s: float
    own: bool = False


class FaultWindows:
    """The faults of the last ten minutes, at most 256; those that are over make room first.

    `now`: seconds since 1970. Use it on the event loop only.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._windows: list[Window] = []

    def announce(self, request: faults_pb2.AnnounceRequest) -> None:
        """A fault acts elsewhere from now on; with ttl_ms 0, no longer. The same one announced
        again only gets another end. Errors: InvalidRequest, Overloaded."""
        _check(request)
        now = self._now()
        known = self._active(request.id, now, own=False)
        if known is not None:
            same = (known.action, known.target) == (request.action, request.target)
            if same or request.ttl_ms == 0:
                known.end_s = now + request.ttl_ms / 1000.0
                return
            known.end_s = now
        if request.ttl_ms == 0:
            return
        end_s = now + request.ttl_ms / 1000.0
        if not self._add(Window(request.id, request.action, request.target, now, end_s)):
            raise Overloaded(f"{WINDOWS_MAX} faults are known, which is the limit")

    def begun(self, fault: faults_pb2.Fault) -> None:
        """A fault of our own table acts (see `FaultTable.watch`)."""
        now = self._now()
        action, target = _ACTIONS.get(fault.kind, "fault"), fault.program or ANYTHING
        end_s = now + fault.ttl_ms / 1000.0
        if not self._add(Window(fault.id, action, target, now, end_s, own=True)):
            log.warning("fault %s is not shown: %d others are", fault.id, WINDOWS_MAX)

    def ended(self, fault_id: str) -> None:
        """It was cleared, or replaced, or its time has run out."""
        now = self._now()
        known = self._active(fault_id, now, own=True)
        if known is not None:
            known.end_s = now

    def recent(self) -> list[frontend_pb2.FaultWindow]:
        """What acts or acted within ten minutes, oldest first. An own fault that is announced too
        is named once."""
        self._forget(self._now())
        announced = {window.id for window in self._windows if not window.own}
        return [
            frontend_pb2.FaultWindow(
                id=window.id,
                action=window.action,
                target=window.target,
                begin_unix_ms=round(window.begin_s * 1000),
                end_unix_ms=round(window.end_s * 1000),
            )
            for window in self._windows
            if not (window.own and window.id in announced)
        ]

    def _active(self, fault_id: str, now: float, *, own: bool) -> Window | None:
        found = (w for w in self._windows if w.id == fault_id and w.own is own and w.end_s > now)
        return next(found, None)

    def _add(self, window: Window) -> bool:
        """Whether there was room."""
        self._forget(window.begin_s)
        if len(self._windows) >= WINDOWS_MAX:
            over = next((w for w in self._windows if w.end_s <= window.begin_s), None)
            if over is None:
                return False
            self._windows.remove(over)
        self._windows.append(window)
        return True

    def _forget(self, now: float) -> None:
        self._windows = [w for w in self._windows if w.end_s > now - KEPT_S]


def _check(request: faults_pb2.AnnounceRequest) -> None:
    """Errors: InvalidRequest."""
    limits = {
        "length of id": (len(request.id.encode()), 1, TEXT_BYTES_MAX),
        "length of action": (len(request.action.encode()), 1, TEXT_BYTES_MAX),
        "length of target": (len(request.target.encode()), 1, TARGET_BYTES_MAX),
        "ttl_ms": (request.ttl_ms, 0, TTL_MS_MAX),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise InvalidRequest(f"announcement: {name} is {value}; the limits are {low} to {high}")

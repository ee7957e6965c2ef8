"""Faults that act inside the worker: a record in shared memory, and what to do about it.

One file under the worker's scratch directory, mapped by every process of the worker. The Triton
model `proa_faults` writes it, the backends of the other models read it before each computation. The
reader enforces the time to live, on a clock that all processes of a machine share, so that nobody
has to be alive for a fault to end.
"""

from __future__ import annotations

import enum
import fcntl
import mmap
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proa.errors import EnvironmentLacks, InvalidRequest, Overloaded

FILE_NAME = "faults"
FAULTS_MAX = 16
TTL_MS_MAX = 600_000
DELAY_MS_MAX = 600_000
BITS_MAX = 4096
PAUSE_POLL_S = 0.005

_HEADER = struct.Struct("<QI4x")  # sequence (odd while somebody writes), count
_SLOT = struct.Struct(
    "<BB64sB64sddIIQBx"
)  # kind, id, program, expiry, probability, delay, bits, seed, site
_SIZE = 4096
_READS_MAX = 64  # a writer that died half-way must not stop the readers


class FaultKind(enum.IntEnum):
    """What happens to a request. Numbers are those of proa.api.v1.FaultKind."""

    DELAY = 1  # the worker is held `delay_ms` longer
    PAUSE = 2  # half-alive: the computation blocks until the fault ends or is cleared
    ERROR = 3  # answered UNAVAILABLE
    DROP = 4  # never answered; the worker goes on
    BITFLIP = 5  # `bits` bits are flipped, at `site`


class FaultSite(enum.IntEnum):
    """Where BITFLIP flips. Numbers are those of proa.api.v1.FaultSite."""

    OUTPUT = 0  # the answer: the same bits each time
    WEIGHT = 1  # the parameters, from the first request hit until the fault ends
    ACTIVATION = 2  # accumulators of one checked product, other bits each time; once, not again


@dataclass(frozen=True)
class Fault:
    """One fault. `expires_s`: on `clock_s`; set by the record. `program`: "" for every program."""

    id: str
    kind: FaultKind
    ttl_ms: int
    probability: float = 1.0
    program: str = ""
    delay_ms: int = 0
    bits: int = 1
    seed: int = 0
    site: FaultSite = FaultSite.OUTPUT
    expires_s: float = 0.0

    def check(self) -> None:
        """Raise InvalidRequest for the first field out of its limits."""
        limits = {
            "ttl_ms": (self.ttl_ms, 1, TTL_MS_MAX),
            "delay_ms": (self.delay_ms, int(self.kind == FaultKind.DELAY), DELAY_MS_MAX),
            "bits": (self.bits, int(self.kind == FaultKind.BITFLIP), BITS_MAX),
            "seed": (self.seed, 0, 2**64 - 1),
            "length of program": (len(self.program.encode()), 0, 64),
            "length of id": (len(self.id.encode()), 1, 64),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise InvalidRequest(f"fault: {name} is {value}; the limits are {low} to {high}")
        if not 0.0 < self.probability <= 1.0:
            raise InvalidRequest(
                f"fault: probability is {self.probability}; it must be above 0 and at most 1"
            )
        if self.site != FaultSite.OUTPUT and self.kind != FaultKind.BITFLIP:
            raise InvalidRequest(f"fault: site {self.site.name} goes with BITFLIP")


def clock_s() -> float:
    """Seconds since boot: the same in every process, and no clock adjustment moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FaultRecord:
    """The shared record. Writers exclude each other with a file lock, readers never wait."""

    def __init__(self, scratch: Path, *, now: Callable[[], float] = clock_s) -> None:
        """Map the record in directory `scratch`, creating it where it is missing."""
        self._now = now
        self._seen = -1
        self._faults: tuple[Fault, ...] = ()
        try:
            self._file = os.open(scratch / FILE_NAME, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, _SIZE)
        except OSError as exc:
            raise EnvironmentLacks(
                f"the fault record cannot be created in {scratch}: {exc.strerror}; make"
                " PROA_WORKER_SCRATCH a writable directory"
            ) from exc
        self._map = mmap.mmap(self._file, _SIZE)

    def close(self) -> None:
        """Unmap. The file stays for the others."""
        self._map.close()
        os.close(self._file)

    def active(self) -> tuple[Fault, ...]:
        """The faults whose time has not run out, oldest first. Costs well under a microsecond."""
        sequence = _HEADER.unpack_from(self._map)[0]
        if sequence != self._seen:
            self._read()
        if not self._faults:
            return ()
        now = self._now()
        return tuple(fault for fault in self._faults if fault.expires_s > now)

    def inject(self, fault: Fault) -> Fault:
        """Add `fault`, or replace the one of the same id. Returns it with its expiry.

        Raises InvalidRequest for a field out of limits and Overloaded beyond FAULTS_MAX faults.
        """
        fault.check()
        with self._writing() as faults:
            kept = [other for other in faults if other.id != fault.id]
            if len(kept) >= FAULTS_MAX:
                soonest = min(other.expires_s for other in kept)
                raise Overloaded(
                    f"{FAULTS_MAX} faults are active, which is the limit; clear one",
                    retry_after_s=max(0.0, soonest - self._now()),
                )
            expires = self._now() + fault.ttl_ms / 1000.0
            placed = Fault(**{**fault.__dict__, "expires_s": expires})
            faults[:] = [*kept, placed]
        return placed

    def clear(self, fault_id: str = "") -> None:
        """Remove the fault of that id, or all of them. Removing what is not there is no error."""
        with self._writing() as faults:
            faults[:] = [fault for fault in faults if fault_id and fault.id != fault_id]

    @contextmanager
    def _writing(self) -> Iterator[list[Fault]]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            faults = list(self.active())
            yield faults
            self._write(faults)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _write(self, faults: Sequence[Fault]) -> None:
        assert len(faults) <= FAULTS_MAX
        sequence = _HEADER.unpack_from(self._map)[0] | 1  # odd already if a writer died
        _HEADER.pack_into(self._map, 0, sequence, len(faults))
        for i, fault in enumerate(faults):
            _SLOT.pack_into(self._map, _HEADER.size + i * _SLOT.size, *_packed(fault))
        _HEADER.pack_into(self._map, 0, sequence + 1, len(faults))

    def _read(self) -> None:
        for _ in range(_READS_MAX):
            sequence, count = _HEADER.unpack_from(self._map)
            body = self._map[_HEADER.size : _HEADER.size + FAULTS_MAX * _SLOT.size]
            if sequence % 2 == 0 and _HEADER.unpack_from(self._map)[0] == sequence:
                slots = _SLOT.iter_unpack(body)
                self._faults = tuple(_unpacked(next(slots)) for _ in range(count))
                self._seen = sequence
                return


assert _HEADER.size + FAULTS_MAX * _SLOT.size <= _SIZE


def _packed(fault: Fault) -> tuple[object, ...]:
    name, program = fault.id.encode(), fault.program.encode()
    return (
        *(fault.kind, len(name), name, len(program), program),
        *(fault.expires_s, fault.probability, fault.delay_ms, fault.bits, fault.seed, fault.site),
    )


def _unpacked(slot: tuple[Any, ...]) -> Fault:
    kind, id_size, name, program_size, program, *rest = slot
    expires_s, probability, delay_ms, bits, seed, site = rest
    return Fault(
        id=name[:id_size].decode(),
        kind=FaultKind(kind),
        ttl_ms=1,
        probability=probability,
        program=program[:program_size].decode(),
        delay_ms=delay_ms,
        bits=bits,
        seed=seed,
        site=FaultSite(site),
        expires_s=expires_s,
    )


class Injector:
    """Decides which faults hit a request, and blocks where a fault blocks."""

    def __init__(
        self, active: Callable[[], Sequence[Fault]], *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._active = active
        self._sleep = sleep
        self._dice: dict[str, random.Random] = {}
        self._parent = os.getppid()

    def draw(self, program: str) -> list[Fault]:
        """The faults that hit the next request for `program`; random by each fault's own seed."""
        faults = self._active()
        if not faults:
            self._dice.clear()
            return []
        return [fault for fault in faults if fault.program in ("", program) and self._hits(fault)]

    def _hits(self, fault: Fault) -> bool:
        if fault.probability >= 1.0:
            return True
        dice = self._dice.setdefault(fault.id, random.Random(fault.seed))  # noqa: S311
        return dice.random() < fault.probability

    def hold(self, fault: Fault) -> None:
        """Block as DELAY and PAUSE demand: ends early when the fault is cleared or runs out."""
        end = clock_s() + fault.delay_ms / 1000.0 if fault.kind == FaultKind.DELAY else float("inf")
        while clock_s() < end and self._stands(fault):
            self._sleep(min(PAUSE_POLL_S, max(0.0, end - clock_s())))

    def _stands(self, fault: Fault) -> bool:
        if os.getppid() != self._parent:  # tritonserver is gone: nobody else would wake us
            return False
        return any(
            other.id == fault.id and other.expires_s == fault.expires_s for other in self._active()
        )


def flip_bits(buffers: Sequence[bytearray | memoryview], bits: int, seed: int) -> None:
    """Flip `bits` distinct bits, chosen by `seed`, over all `buffers` (writable), in place."""
    sizes = [len(buffer) * 8 for buffer in buffers]
    total = sum(sizes)
    for position in random.Random(seed).sample(range(total), min(bits, total)):  # noqa: S311
        place = position
        for buffer, size in zip(buffers, sizes, strict=True):
            if place < size:
                buffer[place // 8] ^= 1 << (place % 8)
                break
            place -= size

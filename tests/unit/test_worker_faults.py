"""The fault record and what acts on it, without Triton."""

from __future__ import annotations

import mmap
import multiprocessing
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.api.v1 import faults_pb2
from proa.errors import EnvironmentLacks, InvalidRequest, Overloaded
from proa.worker.fault_messages import apply
from proa.worker.faults import (
    FAULTS_MAX,
    FILE_NAME,
    Fault,
    FaultKind,
    FaultRecord,
    FaultSite,
    Injector,
    clock_s,
    flip_bits,
)

ERROR = Fault("e", FaultKind.ERROR, ttl_ms=1000)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def record(tmp_path: Path, clock: Clock) -> Iterator[FaultRecord]:
    found = FaultRecord(tmp_path, now=clock)
    yield found
    found.close()


def ids(record: FaultRecord) -> list[str]:
    return [fault.id for fault in record.active()]


def test_another_mapping_sees_every_field(tmp_path: Path, record: FaultRecord) -> None:
    placed = record.inject(
        Fault(
            "ü" * 32,
            FaultKind.BITFLIP,
            600_000,
            0.25,
            "parity.2",
            3,
            4096,
            2**64 - 1,
            FaultSite.ACTIVATION,
        )
    )
    other = FaultRecord(tmp_path, now=Clock())
    (seen,) = other.active()
    assert replace(seen, ttl_ms=placed.ttl_ms) == placed
    other.close()


def test_ends_by_itself(record: FaultRecord, clock: Clock) -> None:
    record.inject(ERROR)
    clock.now += 0.999
    assert ids(record) == ["e"]
    clock.now += 0.002
    assert ids(record) == []


def test_same_id_replaces_and_clear_removes(record: FaultRecord) -> None:
    record.inject(ERROR)
    record.inject(replace(ERROR, id="f"))
    record.inject(replace(ERROR, kind=FaultKind.DROP))
    assert [(fault.id, fault.kind.name) for fault in record.active()] == [
        ("f", "ERROR"),
        ("e", "DROP"),
    ]
    record.clear("f")
    record.clear("absent")
    assert ids(record) == ["e"]
    record.clear()
    assert ids(record) == []


def test_at_most_16(record: FaultRecord, clock: Clock) -> None:
    for i in range(FAULTS_MAX):
        record.inject(replace(ERROR, id=str(i), ttl_ms=2000 + i))
    with pytest.raises(Overloaded, match="16 faults are active") as caught:
        record.inject(ERROR)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    record.inject(replace(ERROR, id="3"))  # replaces: still 16
    clock.now += 1.5
    record.inject(ERROR)
    assert len(ids(record)) == FAULTS_MAX


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ttl_ms": 0}, "ttl_ms is 0; the limits are 1 to 600000"),
        ({"ttl_ms": 600_001}, "ttl_ms"),
        ({"probability": 0.0}, "probability is 0.0"),
        ({"probability": float("nan")}, "probability is nan"),
        ({"id": ""}, "length of id is 0; the limits are 1 to 64"),
        ({"program": "x" * 65}, "length of program is 65"),
        ({"kind": FaultKind.DELAY}, "delay_ms is 0; the limits are 1"),
        ({"kind": FaultKind.BITFLIP, "bits": 4097}, "bits is 4097"),
        ({"seed": -1}, "seed is -1"),
        ({"site": FaultSite.WEIGHT}, "site WEIGHT goes with BITFLIP"),
    ],
)
def test_limits(record: FaultRecord, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        record.inject(replace(ERROR, **change))
    assert ids(record) == []


def test_a_writer_that_died_half_way(tmp_path: Path, record: FaultRecord) -> None:
    record.inject(ERROR)
    assert ids(record) == ["e"]
    with (tmp_path / FILE_NAME).open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        (sequence,) = struct.unpack_from("<Q", view)
        view[:] = struct.pack("<Q", sequence + 1) + b"\xff" * (len(view) - 8)
    assert ids(record) == ["e"], "readers keep what they last saw"
    record.clear()
    record.inject(replace(ERROR, id="next"))
    assert ids(record) == ["next"]


def hammer(folder: Path, stop: Any) -> None:
    record = FaultRecord(folder)
    i = 0
    while not stop.is_set():
        i += 1
        same = f"{i % 1000:04d}" * 16
        record.inject(Fault("one", FaultKind.DELAY, 60_000, program=same, delay_ms=1 + i % 1000))


def test_no_reader_sees_half_a_fault(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("spawn")
    stop = processes.Event()
    writer = processes.Process(target=hammer, args=(tmp_path, stop), daemon=True)
    record = FaultRecord(tmp_path)
    writer.start()
    seen: set[int] = set()
    end = clock_s() + 20.0
    while len(seen) < 300 and clock_s() < end:
        for fault in record.active():
            seen.add(fault.delay_ms)
            assert fault.program == f"{(fault.delay_ms - 1) % 1000:04d}" * 16
    stop.set()
    writer.join()
    assert len(seen) == 300


def test_unwritable_scratch(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="PROA_WORKER_SCRATCH"):
        FaultRecord(tmp_path / "absent")


def drawn(seed: int, count: int = 2000) -> list[bool]:
    fault = replace(ERROR, probability=0.3, seed=seed)
    injector = Injector(lambda: [fault])
    return [bool(injector.draw("deployed")) for _ in range(count)]


def test_probability_is_kept_and_repeatable() -> None:
    assert drawn(1) == drawn(1) != drawn(2)
    assert sum(drawn(1)) / 2000 == pytest.approx(0.3, abs=0.05)


def test_program_filter() -> None:
    injector = Injector(lambda: [replace(ERROR, program="parity.0")])
    assert injector.draw("deployed") == []
    assert [fault.id for fault in injector.draw("parity.0")] == ["e"]


def holding(record: FaultRecord, then: Callable[[float], None]) -> Injector:
    return Injector(record.active, sleep=then)


def test_pause_ends_when_cleared_and_when_its_time_is_up(
    tmp_path: Path, record: FaultRecord, clock: Clock
) -> None:
    polls: list[float] = []

    def clear_at_third(seconds: float) -> None:
        polls.append(seconds)
        if len(polls) == 3:
            record.clear()

    pause = record.inject(Fault("p", FaultKind.PAUSE, 60_000))
    holding(record, clear_at_third).hold(pause)
    assert polls == [0.005] * 3

    def advance(_seconds: float) -> None:
        clock.now += 20.0

    pause = record.inject(Fault("p", FaultKind.PAUSE, 60_000))
    holding(record, advance).hold(pause)
    assert clock.now == pytest.approx(160.0)


def test_delay_lasts_as_long_as_it_says() -> None:
    fault = replace(ERROR, kind=FaultKind.DELAY, delay_ms=30)
    started = clock_s()
    Injector(lambda: [fault]).hold(fault)
    assert 0.03 <= clock_s() - started < 1.0


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    bits=st.integers(1, 100),
    seed=st.integers(0, 2**64 - 1),
)
def test_flips_exactly_as_many_bits(sizes: list[int], bits: int, seed: int) -> None:
    buffers, again = ([bytearray(size) for size in sizes] for _ in range(2))
    flip_bits(buffers, bits, seed)
    flip_bits(again, bits, seed)
    assert buffers == again
    assert sum(int.from_bytes(b, "little").bit_count() for b in buffers) == min(
        bits, 8 * sum(sizes)
    )


def test_messages(record: FaultRecord) -> None:
    def call(**op: Any) -> list[faults_pb2.Fault]:
        reply = apply(record, faults_pb2.FaultRequest(**op).SerializeToString())
        return list(faults_pb2.FaultReply.FromString(reply).active)

    fault = faults_pb2.Fault(id="d", kind=faults_pb2.DELAY, ttl_ms=5000, delay_ms=7)
    (placed,) = call(inject=faults_pb2.InjectRequest(fault=fault))
    assert (placed.id, placed.delay_ms, placed.probability, placed.bits) == ("d", 7, 1.0, 1)
    assert call(list=faults_pb2.ListRequest()) == [placed]
    with pytest.raises(InvalidRequest, match="kind 0 is not known"):
        call(inject=faults_pb2.InjectRequest())
    odd = faults_pb2.Fault(id="b", kind=faults_pb2.BITFLIP, ttl_ms=5000, site=7)
    with pytest.raises(InvalidRequest, match="site 7 is not known"):
        call(inject=faults_pb2.InjectRequest(fault=odd))
    odd.site = faults_pb2.ACTIVATION
    assert call(inject=faults_pb2.InjectRequest(fault=odd))[-1].site == faults_pb2.ACTIVATION
    call(clear=faults_pb2.ClearRequest(id="b"))
    with pytest.raises(InvalidRequest, match="op is not set"):
        call()
    with pytest.raises(InvalidRequest, match=r"not a proa\.api\.v1\.FaultRequest"):
        apply(record, b"\xff\xff")
    assert call(clear=faults_pb2.ClearRequest(id="d")) == []


def test_kinds_have_the_numbers_of_the_contract() -> None:
    of_store = {"STALE_DISK", "EMBEDDING"}
    assert {kind.name: kind.value for kind in FaultKind} == {
        name: value
        for name, value in faults_pb2.FaultKind.items()
        if value and name not in of_store
    }
    assert {site.name: site.value for site in FaultSite} == {
        name: value for name, value in faults_pb2.FaultSite.items() if name not in of_store
    }

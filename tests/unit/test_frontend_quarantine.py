"""Who is taken out for computing wrongly, by a clock of the test's own."""

from __future__ import annotations

import pytest

from proa.frontend.quarantine import FAULTS_KEPT, Limits, Quarantine, Ruling

HOUR_S = 3600.0


class Fleet:
    """Workers w0, w1, ... of one model: those that are not held serve."""

    def __init__(self, workers: int, **limits: float) -> None:
        self.now = 1000.0
        self.workers = workers
        self.quarantine = Quarantine(Limits(**limits))  # type: ignore[arg-type]

    def fault(self, index: int, times: int = 1) -> Ruling:
        ruling = Ruling.NONE
        for _ in range(times):
            others = self.workers - len(self.quarantine.held | {f"w{index}"})
            ruling = self.quarantine.fault(
                f"w{index}", self.now, workers=self.workers, others=others
            )
        return ruling

    def holds(self, index: int) -> bool:
        return self.quarantine.holds(f"w{index}", self.now)


def test_the_second_fault_within_the_window_takes_a_worker_out():
    fleet = Fleet(10)
    assert fleet.fault(0) is Ruling.NONE
    assert not fleet.holds(0)
    fleet.now += HOUR_S - 1
    assert fleet.fault(0) is Ruling.QUARANTINED
    assert fleet.holds(0)
    assert fleet.quarantine.reason("w0", fleet.now) == "2 faults in 60 min"


def test_faults_a_window_apart_do_not_add_up():
    fleet = Fleet(10)
    for _ in range(20):
        assert fleet.fault(0) is Ruling.NONE
        fleet.now += HOUR_S
    assert not fleet.holds(0)


def test_faults_of_others_do_not_count():
    fleet = Fleet(10)
    assert {fleet.fault(index) for index in range(10)} == {Ruling.NONE}


def test_a_worker_is_out_until_a_window_after_its_last_fault():
    fleet = Fleet(10)
    fleet.fault(0, 2)
    fleet.now += HOUR_S / 2
    assert fleet.fault(0) is Ruling.QUARANTINED  # its canary found it
    fleet.now += HOUR_S - 1
    assert fleet.holds(0)
    fleet.now += 1
    assert not fleet.holds(0)
    assert fleet.quarantine.held == frozenset()
    assert fleet.fault(0) is Ruling.NONE  # it starts anew


def test_who_restarted_starts_anew():
    fleet = Fleet(10)
    fleet.fault(0, 2)
    fleet.quarantine.forget("w0")
    assert not fleet.holds(0)
    assert fleet.fault(0) is Ruling.NONE
    assert fleet.fault(0) is Ruling.QUARANTINED


@pytest.mark.parametrize(
    ("workers", "percent", "places"),
    [
        (0, 20, 0), (1, 100, 0), (2, 20, 1), (4, 20, 1), (9, 20, 1), (10, 20, 2), (14, 20, 2),
        (3, 100, 2), (4, 50, 2), (5, 50, 2), (10, 0, 0), (100, 0.5, 1), (100, 3, 3),
    ],
)  # fmt: skip
def test_how_many_places_there_are(workers: int, percent: float, places: int):
    assert Limits(percent_max=percent).places(workers) == places


def test_a_storm_stops_at_the_cap():
    fleet = Fleet(12)
    rulings = [fleet.fault(index, 2) for index in range(12)]
    assert rulings.count(Ruling.QUARANTINED) == 2
    assert rulings.count(Ruling.CAPPED) == 10
    assert fleet.quarantine.held == {"w0", "w1"}


def test_a_place_that_is_free_again_is_for_the_next_fault():
    fleet = Fleet(5)
    fleet.fault(0, 2)
    assert fleet.fault(1, 2) is Ruling.CAPPED
    fleet.quarantine.forget("w0")
    assert fleet.fault(1) is Ruling.QUARANTINED


def test_the_last_one_that_serves_stays():
    quarantine = Quarantine(Limits(after=1, percent_max=100))
    assert quarantine.fault("w0", 0.0, workers=4, others=0) is Ruling.CAPPED
    assert quarantine.fault("w0", 0.0, workers=4, others=1) is Ruling.QUARANTINED


def test_on_parole_its_faults_count_on():
    fleet = Fleet(2)
    fleet.fault(0, 2)
    fleet.quarantine.parole("w0")
    assert not fleet.holds(0)
    assert fleet.fault(0) is Ruling.QUARANTINED


def test_faults_without_end_are_counted_up_to_a_limit():
    fleet = Fleet(10, after=1)
    fleet.fault(0, FAULTS_KEPT + 5)
    assert fleet.quarantine.reason("w0", fleet.now) == f"{FAULTS_KEPT}+ faults in 60 min"


def test_a_new_version_of_the_model_knows_them_and_has_limits_of_its_own():
    fleet = Fleet(10)
    fleet.fault(0, 2)
    fleet.fault(1)
    later = Quarantine(Limits(after=2, window_s=60.0), before=fleet.quarantine)
    assert later.holds("w0", fleet.now)
    assert later.fault("w1", fleet.now, workers=10, others=8) is Ruling.QUARANTINED
    assert not later.holds("w0", fleet.now + 60.0)
    assert fleet.holds(0)

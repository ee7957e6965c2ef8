"""Measures of requests, and probes over them."""

from __future__ import annotations

import pytest

from proa_chaos.experiment import Experiment, Probe
from proa_chaos.hypothesis import judge, judge_window, probes_of
from proa_chaos.measures import Sample, ServingObservations


def observed():
    """Before: ten answers of 10 to 100 ms. During: five answered, of which one is wrong and two
    are reconstructed, one of these not as good as exact; three have failed."""
    before = [
        Sample("before", i / 10, (i + 1) / 100, source="worker", right=True) for i in range(10)
    ]
    during = [
        Sample("during", 1.0, 0.03, source="worker", right=True, repaired=True),
        Sample("during", 1.1, 0.03, source="worker", wrong=True),
        Sample("during", 1.2, 0.05, source="hedge", right=True),
        Sample("during", 1.3, 0.06, source="reconstructed", right=True),
        Sample("during", 1.4, 0.08, source="reconstructed"),
        Sample("during", 1.5, 0.0, status="RESOURCE_EXHAUSTED"),
        Sample("during", 1.6, 1.5, status="DEADLINE_EXCEEDED"),
        Sample("during", 1.7, 1.5, status="DEADLINE_EXCEEDED"),
    ]
    return ServingObservations(2.0, [*before, *during], 4.0, {"before": 0, "during": 2})


@pytest.mark.parametrize(
    ("measure", "phase", "want"),
    [
        ("p50Ms", "before", 50.0), ("p99Ms", "before", 100.0), ("maxMs", "before", 100.0),
        ("p50Ms", "during", 60.0), ("maxMs", "during", 2000.0),  # a failure waits its deadline
        ("sent", "during", 8.0), ("sent", "all", 18.0), ("sent", "after", 0.0),
        ("failed", "during", 3.0), ("failedPercent", "during", 37.5), ("failed", "before", 0.0),
        ("wrong", "during", 1.0), ("wrongPercent", "during", 20.0),
        ("accuracy", "before", 1.0), ("accuracy", "during", 0.6), ("accuracy", "after", None),
        ("reconstructed", "during", 2.0), ("reconstructedPercent", "during", 40.0),
        ("redundant", "during", 3.0), ("redundantPercent", "during", 60.0),
        ("repaired", "during", 1.0), ("repairedPercent", "during", 20.0),
        ("quarantined", "during", 2.0), ("quarantined", "all", 2.0), ("quarantined", "after", None),
        ("p99Ms", "after", None), ("failedPercent", "after", None), ("recoveryS", "after", 4.0),
    ],
)  # fmt: skip
def test_measures(measure, phase, want):
    assert observed().measure(measure, phase) == (None if want is None else pytest.approx(want))


@pytest.mark.parametrize(
    ("probe", "met", "text"),
    [
        (Probe("failed", at_most=3.0), True, "3"),
        (Probe("failed", at_most=2.0), False, "3"),
        (Probe("reconstructed", at_least=2.0, at_most=2.0), True, "2"),
        (Probe("p50Ms", at_most=1.3, relative_to="before"), True, "1.2 x (60 / 50)"),
        (Probe("p50Ms", at_most=1.1, relative_to="before"), False, "1.2 x (60 / 50)"),
        (Probe("p50Ms", at_least=1.1, relative_to="before"), True, "1.2 x (60 / 50)"),
        (Probe("errors", allowed=("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")), True,
         "2 DEADLINE_EXCEEDED, 1 RESOURCE_EXHAUSTED"),
        (Probe("errors", allowed=("RESOURCE_EXHAUSTED",)), False,
         "2 DEADLINE_EXCEEDED, 1 RESOURCE_EXHAUSTED"),
        (Probe("errors", "before", allowed=()), True, "none"),
        # What cannot be measured is not met.
        (Probe("p99Ms", "after", at_most=1e6), False, "nothing to measure"),
        (Probe("failed", at_most=1.0, relative_to="before"), False, "nothing to measure"),
    ],
)  # fmt: skip
def test_probes(probe, met, text):
    found = judge(probe, observed())
    assert (found.met, found.text) == (met, text)


def test_a_guard_looks_at_its_window_alone():
    probe = Probe("failedPercent", at_most=40.0)
    during = observed().of("during")
    assert judge_window(probe, during, observed()).met
    assert not judge_window(probe, during[4:], observed()).met


def test_a_probe_is_judged_when_the_last_phase_it_needs_is_over():
    probes = (
        Probe("failed", "before", at_most=0.0),
        Probe("failed", "during", at_most=0.0),
        Probe("p99Ms", "before", at_most=2.0, relative_to="after"),
        Probe("p99Ms", "during", at_most=2.0, relative_to="before"),
        Probe("failed", "all", at_most=0.0),
        Probe("recoveryS", "during", at_most=0.0),
    )
    experiment = Experiment("trial", "t", "d", probes)
    found = {phase: probes_of(experiment, phase) for phase in ("before", "during", "after")}
    assert found["before"] == [probes[0]]
    assert found["during"] == [probes[1], probes[3]]
    assert found["after"] == [probes[2], probes[4], probes[5]]

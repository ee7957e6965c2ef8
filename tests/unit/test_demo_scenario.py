"""The demo's scenario, its policy specs, and what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.cluster import write_spec
from proa import spec as specs
from proa.demo.records import FaultWindow, Phase, ReportConfig, RequestRecord
from proa.demo.report import build_report
from proa.demo.scenario import CONTENDERS, WORKERS, make_scenario
from proa.demo.stage import write_policy_spec
from proa.demo.verdict import caution, promises


def test_exactly_one_worker_is_slow_at_any_time_of_the_slow_phase():
    scenario = make_scenario(seed=3, quick=False)
    slow = scenario.phase("slow")
    assert scenario.episodes[0].start_s == slow.start_s
    assert scenario.episodes[-1].end_s == slow.end_s
    for one, following in zip(scenario.episodes, scenario.episodes[1:], strict=False):
        assert one.end_s == following.start_s
        assert one.worker != following.worker
    assert {e.worker for e in scenario.episodes} <= set(range(WORKERS))


def test_the_phases_are_those_of_the_report():
    scenario = make_scenario(seed=0, quick=False)
    lengths = {p.name: p.end_s - p.start_s for p in scenario.phases}
    assert lengths == {"calm": 5.0, "slow": 20.0, "killed": 10.0, "recovery": 5.0}
    assert [scenario.phase_at(t) for t in (0.0, 5.0, 24.9, 25.0, 35.0, 99.0)] == [
        "calm", "slow", "slow", "killed", "recovery", "recovery",
    ]  # fmt: skip


@pytest.mark.parametrize("quick", [False, True])
def test_what_the_headline_compares_runs_one_right_after_the_other(quick: bool):
    scenario = make_scenario(seed=0, quick=quick)
    names = [one.name for one in scenario.in_turn]
    assert names[-2:] == ["none", "auto"]
    assert sorted(names) == sorted(one.name for one in scenario.contenders)


def test_one_seed_gives_one_scenario():
    assert make_scenario(seed=5, quick=True) == make_scenario(seed=5, quick=True)
    assert make_scenario(seed=5, quick=True) != make_scenario(seed=6, quick=True)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
def test_every_policy_s_spec_loads_and_finds_the_same_programs(tmp_path: Path, contender):
    base = write_spec(tmp_path)
    found = specs.load(write_policy_spec(base, contender, tmp_path / "policies"))
    assert found.redundancy.policy == contender.redundancy["policy"]
    assert found.model.program is not None
    assert found.model.program.path.resolve() == (tmp_path / "digits.pt2").resolve()
    assert found.redundancy.parity[2][0].path.resolve() == (tmp_path / "parity.pt2").resolve()


def report_of(none_ms: list[float], auto_ms: list[float], *, wrong: bool = False):
    records = [
        RequestRecord(
            policy, phase, i, i * 0.01, ms / 1e3, True,
            "reconstructed" if policy == "auto" and i == 0 else "worker", True, wrong and i == 1,
        )
        for policy, latencies in (("none", none_ms), ("auto", auto_ms))
        for phase in ("slow", "killed")
        for i, ms in enumerate(latencies)
    ]  # fmt: skip
    config = ReportConfig(
        policies={"none": "none", "auto": "auto"},
        phases=[Phase("slow", 0.0, 1.0), Phase("killed", 1.0, 2.0)],
    )
    extra = {(p, phase): 0.0 for p in ("none", "auto") for phase in ("slow", "killed")}
    return build_report(records, [FaultWindow("none", "slow", "worker-0", 0.0, 1.0)], extra, config)


def test_promises_are_met_or_missed_by_the_numbers():
    good = report_of([20.0] * 50 + [60.0] * 50, [21.0] * 50 + [40.0] * 50)
    assert all(promise.met for promise in promises(good))
    bad = report_of([20.0] * 50 + [60.0] * 50, [30.0] * 50 + [90.0] * 50, wrong=True)
    missed = {promise.what for promise in promises(bad) if not promise.met}
    assert missed == {
        "slow: gap against none",
        "slow: p50 against none",
        "killed: gap against none",
        "killed: p50 against none",
        "wrong answers, all policies",
    }


def test_gaps_of_few_requests_are_called_so():
    assert caution(report_of([20.0] * 500, [20.0] * 500)) is None
    few = caution(report_of([20.0] * 299, [20.0] * 299))
    assert few == "a gap of 299 requests stands on the slowest 2: too few to judge"

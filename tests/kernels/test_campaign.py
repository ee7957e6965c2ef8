"""What must hold of the check of matrix products, by the campaign that users run.

`pytest tests/kernels/test_campaign.py -m long` is `proa abft campaign --size full` with the main
operator: about six minutes on one core, idle.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proa.integrity.campaign.counts import Counts, total
from proa.integrity.campaign.findings import Finding, Must, failed, musts
from proa.integrity.campaign.operators import MAIN
from proa.integrity.campaign.plan import SIZES, Selection
from proa.integrity.campaign.synthetic import measure

SEED = 11


@pytest.fixture(scope="module")
def quick() -> list[Finding]:
    """Every site and fault, bf16, all distributions; about five seconds."""
    return measure(SIZES["quick"], Selection(operators=(MAIN,), dtypes=("bf16",)), SEED)


def of(findings: Sequence[Finding], **chosen: str) -> Counts:
    """Counts of the findings with these attributes."""
    found = [one.counts for one in findings if all(getattr(one, k) == v for k, v in chosen.items())]
    assert found, chosen
    return total(found)


def status(found: Sequence[Must]) -> dict[str, bool | None]:
    return {must.name.split(":")[0]: must.met for must in found}


def test_what_must_hold(quick: list[Finding]) -> None:
    found = musts(quick)
    assert failed(found) == []
    names = status(found)
    few = "no false positive in 1,000,000 clean checks"
    assert names.pop(few) is None, "so few checks tell little"
    assert len(names) == 7
    assert set(names.values()) == {True}, found
    assert of(quick, site="clean").clean_checks > 20_000


def test_bits_of_normal_data(quick: list[Finding]) -> None:
    bits = of(quick, site="accumulator", distribution="n01", moment="final", fault="bit").bits
    assert sorted(bits) == list(range(32))
    assert all(bits[bit][1] == 0 for bit in range(6)), "a limit below the rounding would alarm"
    assert all(bits[bit][1] == bits[bit][0] > 0 for bit in (*range(20, 25), 30, 31))


@pytest.mark.parametrize("moment", ["early", "mid", "late", "final"])
@pytest.mark.parametrize("fault", ["word", "zeros", "swap", "stale", "nan", "inf"])
def test_faults_on_the_way(quick: list[Finding], moment: str, fault: str) -> None:
    counts = of(quick, site="accumulator", distribution="n01", moment=moment, fault=fault)
    assert counts.injected >= 64
    assert counts.detected == counts.corrected == counts.injected


@pytest.mark.parametrize("site", ["operand", "operand-weight"])
def test_operands(quick: list[Finding], site: str) -> None:
    """The product and its check see different operands."""
    counts = of(quick, site=site, distribution="n01")
    assert counts.injected > 1000
    assert counts.visible_detected > 0.98 * counts.visible
    assert counts.corrected == counts.detected


def test_a_fault_that_is_repeated_is_found_and_stays(quick: list[Finding]) -> None:
    counts = of(quick, site="accumulator", distribution="n01", moment="repeated", fault="word")
    assert counts.detected == counts.injected == 16
    assert counts.corrected == 0
    assert counts.located > 0.8 * counts.located_of


def test_a_stored_weight(quick: list[Finding]) -> None:
    counts = of(quick, site="weight", distribution="n01", fault="word")
    assert counts.detected == counts.injected == 16
    assert counts.corrected == 0, "a recomputation takes the same weight"
    assert of(quick, site="weight", distribution="n01").large_detected > 100


def test_what_is_stored_for_the_check(quick: list[Finding]) -> None:
    counts = of(quick, site="checksum", fault="nan")
    assert counts.detected == counts.injected > 0
    assert of(quick, site="checksum").visible == 0
    assert of(quick, site="norms").detected == 0, "of two copies the smaller counts"


def test_the_output_is_not_looked_at_again(quick: list[Finding]) -> None:
    counts = of(quick, site="output")
    assert counts.visible == counts.injected > 1000
    assert counts.detected == 0


@pytest.mark.parametrize("operator", ["conv2d.row", "linear.dup", "conv2d.dup", "bmm.row"])
def test_other_operators(operator: str) -> None:
    chosen = Selection(operators=(operator,), dtypes=("bf16",), distributions=("n01",))
    found = measure(SIZES["quick"], chosen, SEED)
    assert failed(musts(found)) == []
    assert of(found, site="clean").false_positives == 0
    transient = of(found, site="accumulator", moment="final")
    repeated = of(found, site="accumulator", moment="repeated")
    weights = of(found, site="weight")
    if operator.endswith("dup"):
        assert transient.detected == transient.corrected == transient.injected > 500
        assert (repeated.detected, weights.detected) == (0, 0)
    else:
        assert transient.large_detected == transient.large > 500
        assert repeated.large_detected == repeated.large
        # A sheet's checksum is of what is there when the call begins.
        assert operator == "bmm.row" or weights.large_detected > 0.9 * weights.large


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_must_hold_in_full() -> None:
    found = measure(SIZES["full"], Selection(operators=(MAIN,)), SEED)
    results = musts(found)
    assert failed(results) == []
    assert set(status(results).values()) == {True}, results
    assert len(results) == 8
    assert of(found, site="clean").clean_checks > 1_000_000
    bits = of(found, site="accumulator", distribution="n01", moment="final", fault="bit").bits
    assert all(bits[bit][0] >= 1000 for bit in range(32))

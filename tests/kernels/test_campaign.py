"""What must hold of the check of matrix products, by the campaign that users run.

`pytest tests/kernels/test_campaign.py -m long` is `proa abft campaign --size full` with the main
operator: about eight minutes on one core, idle.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from proa.integrity.campaign.counts import Counts, total
from proa.integrity.campaign.distributions import SMOOTH
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
    return {must.name: must.met for must in found}


def missed(found: Sequence[Must]) -> set[str]:
    """Names of what is missed for a reason that the findings show."""
    assert all(must.met is False for must in found if must.reason)
    return {must.name.partition(" found")[0] for must in found if must.reason}


def test_what_must_hold(quick: list[Finding]) -> None:
    found = musts(quick)
    assert failed(found) == []
    names = status(found)
    few = "no false positive in 1,000,000 clean checks"
    assert names.pop(few) is None, "so few checks tell little"
    assert len(names) == 20
    # The limit may hide what several wrong elements sum to. Nothing excuses a single one.
    several = {"swaps", "pairs", "repeated: errors above 1e-3 sigma"}
    several |= {f"{kind}: errors above 1e-3 sigma" for kind in ("stride", "swap", "pair")}
    assert missed(found) <= several
    # So is a rate of 99.9 % of 256 in a cell.
    little = {few, *(name for name in names if name.startswith(("swaps", "pairs")))}
    assert all(must.met for must in found if not must.reason and must.name not in little), found
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


@pytest.mark.parametrize(
    "operator",
    ["conv2d.row", "linear.dup", "conv2d.dup", "bmm.row", "attention.row", "attention.dup"],
)
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
        # The checksum of a computed matrix is of what is there when the call begins.
        computed = operator in ("bmm.row", "attention.row")
        assert computed or weights.large_detected > 0.9 * weights.large


@pytest.mark.parametrize("step", ["scores", "softmax"])
def test_the_steps_before_the_output_of_attention(step: str) -> None:
    """What does not change the output may pass; what changes it much is found in its row."""
    chosen = Selection(operators=("attention.row",), dtypes=("fp32",), distributions=tuple(SMOOTH))
    counts = of(measure(SIZES["quick"], chosen, SEED), site=step)
    assert counts.injected > 40
    assert counts.large_detected == counts.large > 30
    assert counts.located == counts.located_of == counts.detected
    assert counts.corrected == counts.detected
    assert counts.miscorrected == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_must_hold_in_full() -> None:
    found = measure(SIZES["full"], Selection(operators=(MAIN,)), SEED)
    results = musts(found)
    assert failed(results) == []
    assert all(must.met for must in results if not must.reason), results
    assert len(results) == 21
    assert missed(results) <= {
        *("swaps", "pairs", "repeated: errors above 1e-3 sigma"),
        *(f"{kind}: errors above 1e-3 sigma" for kind in ("stride", "swap", "pair")),
    }
    assert of(found, site="clean").clean_checks > 1_000_000
    bits = of(found, site="accumulator", distribution="n01", moment="final", fault="bit").bits
    assert all(bits[bit][0] >= 1000 for bit in range(32))

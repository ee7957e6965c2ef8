"""What a plan takes and leaves out: arithmetic on times, without measuring."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.integrity.profile import choice
from proa.integrity.profile.choice import Cost, Expense

TIMES = st.dictionaries(
    st.sampled_from(choice.SCHEMES), st.floats(0.1, 1e6), min_size=0, max_size=4
).flatmap(
    lambda times: st.floats(0.1, 1e6).map(lambda base: {"none": base, **times})
)  # fmt: skip
ALSO = st.sampled_from([(), ("dup",)])
COSTS = st.builds(
    Cost,
    st.sampled_from("abcdef"),
    st.integers(0, 10**9),
    st.floats(-1e3, 1e4, allow_nan=False),
)


def expenses(batches: list[list[Cost]]) -> list[Expense]:
    """The same layers at each batch size, as a profile has them."""
    return [
        Expense(1000.0, 10.0, list({one.layer: one for one in some}.values())) for some in batches
    ]


@given(st.lists(TIMES, max_size=12), ALSO)
def test_guided_is_never_above_any_single_scheme(
    layers: list[Mapping[str, float]], also: tuple[str, ...]
) -> None:
    guided = choice.guided(layers, also)
    for scheme in choice.allowed(choice.SCHEMES, also):
        assert guided <= choice.total(layers, scheme, also) * (1 + 1e-12)


@given(st.lists(st.tuples(TIMES, TIMES, TIMES), max_size=8), ALSO)
def test_one_scheme_for_all_batches_is_never_above_a_single_one(
    layers: list[tuple[Mapping[str, float], ...]], also: tuple[str, ...]
) -> None:
    planned = [choice.cheapest_over(batches, also) for batches in layers]
    for scheme in choice.allowed(choice.SCHEMES, also):
        pairs = [
            (plan, batches)
            for plan, batches in zip(planned, layers, strict=True)
            if all(scheme in times for times in batches)
        ]
        ours = sum(times[plan] for plan, batches in pairs for times in batches)
        theirs = sum(times[scheme] for _, batches in pairs for times in batches)
        assert ours <= theirs * (1 + 1e-12)


def test_what_covers_less_is_taken_where_it_is_allowed_or_all_there_is() -> None:
    times = {"none": 10.0, "row": 14.0, "dup": 12.0}
    assert choice.cheapest(times) == "row", "dup does not see weights that changed"
    assert choice.cheapest(times, ("dup",)) == "dup"
    assert choice.cheapest({"none": 10.0, "dup": 20.0}) == "dup"
    assert choice.cheapest({"none": 10.0}) == "none"
    assert choice.cheapest({"none": 1.0, "row": 2.0, "tile": 2.0}) == "row", "ties: the simplest"


def test_a_scheme_that_one_batch_lacks_is_not_taken() -> None:
    batches = [{"none": 1.0, "row": 9.0, "tile": 2.0}, {"none": 1.0, "row": 9.0}]
    assert choice.cheapest_over(batches) == "row"
    assert choice.cheapest_over([]) == "none"


def test_the_cheapest_coverage_goes_first() -> None:
    costs = (Cost("little", 10, 5.0), Cost("much", 1000, 30.0), Cost("free", 1, 0.0))
    one = Expense(program_us=1000.0, verdicts_us=2.0, costs=costs)
    assert choice.left_out([one], 4.0) == []
    assert choice.left_out([one], 3.6) == ["little"]
    assert choice.left_out([one], 3.0) == ["little", "much"]
    assert choice.left_out([one], 0.1) == ["little", "much", "free"], "verdicts are not free"
    tight = Expense(500.0, 2.0, costs)
    assert choice.left_out([one, tight], 4.0) == ["little", "much"], "each batch has its limit"


@settings(max_examples=200)
@given(st.lists(st.lists(COSTS, max_size=6), max_size=3), st.floats(0, 500))
def test_what_is_kept_is_below_the_limit(batches: list[list[Cost]], percent: float) -> None:
    found = expenses(batches)
    dropped = choice.left_out(found, percent)
    assert len(dropped) == len(set(dropped))
    for one in found:
        kept = [cost for cost in one.costs if cost.layer not in dropped]
        spent = one.verdicts_us + sum(max(0.0, cost.extra_us) for cost in kept)
        assert not kept or spent <= one.program_us * percent / 100.0


@pytest.mark.parametrize("also", [(), ("dup",)])
def test_allowed_schemes(also: tuple[str, ...]) -> None:
    assert choice.allowed(("dup", "tile", "row"), also) == ("row", "tile", *also)
    assert choice.allowed(("none",), also) == ()

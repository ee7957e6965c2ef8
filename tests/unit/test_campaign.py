"""The parts of the fault campaign: faults, counts, journal, what must hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proa.errors import InvalidRequest
from proa.integrity.campaign import operators, synthetic
from proa.integrity.campaign.cells import Cases, Cell, run_cell
from proa.integrity.campaign.counts import Counts, bound, total, wilson
from proa.integrity.campaign.distributions import DTYPES
from proa.integrity.campaign.faults import ELEMENTS, FAULTS, MANY, corrupt, differs, width_of
from proa.integrity.campaign.findings import Finding, brief, failed, musts, objects
from proa.integrity.campaign.journal import Journal
from proa.integrity.campaign.limit import RowLimit
from proa.integrity.campaign.plan import SIZES, Selection, cells
from proa.integrity.campaign.report import Report, markdown
from proa.integrity.campaign.synthetic import run_synthetic

FEW = Selection(operators=("linear.row",), dtypes=("bf16",), distributions=("n01",))
CELL = Cell("linear.row", "bf16", "n01", 64, "accumulator", "word", "final", rows=16, singles=4)


def dice(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_intervals_are_wilsons() -> None:
    """Numbers from the formula worked out by hand; at the ends they stay within 0 and 1."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert bound(0, 1_000_000) == pytest.approx(3.0e-6, rel=0.01)
    assert bound(0, 0) == 1.0
    assert bound(3, 1000) > 0.003


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float64])
@pytest.mark.parametrize("fault", ELEMENTS)
def test_element_faults(fault: str, dtype: torch.dtype) -> None:
    rows = torch.randn(200, 40, generator=dice(2)).to(dtype)
    done = corrupt(fault, rows, dice(), span=(10, 20))
    again = corrupt(fault, rows, dice(), span=(10, 20))
    assert not bool(differs(done.rows, again.rows).any()), "the same dice, the same fault"
    hit = differs(done.rows, rows)
    assert bool((hit.sum(1) == 1).all())
    assert torch.equal(hit.float().argmax(1), done.columns)
    assert 10 <= int(done.columns.min()) <= int(done.columns.max()) < 20
    wrong = done.rows[torch.arange(200), done.columns]
    counts = [bin(int(bits) & ((1 << width_of(dtype)) - 1)).count("1") for bits in done.bits]
    limits = {"bit": (1, 1), "adjacent": (2, 2), "multi": (2, 8), "byte": (1, 8)}
    least, most = limits.get(fault, (1, width_of(dtype)))
    assert least <= min(counts) <= max(counts) <= most
    if fault == "bit":
        each = (done.bits[:, None] >> torch.arange(width_of(dtype)) & 1).sum(0)
        assert int(each.max()) - int(each.min()) <= 1, "every bit alike"
    if fault in ("zero", "inf", "nan"):
        held = {"zero": wrong == 0, "inf": torch.isinf(wrong), "nan": torch.isnan(wrong)}[fault]
        assert bool(held.all())


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault not in ELEMENTS])
def test_row_faults(fault: str) -> None:
    rows = torch.randn(300, 64, generator=dice(2))
    done = corrupt(fault, rows, dice())
    hit = differs(done.rows, rows).sum(1)
    assert set(done.columns.tolist()) == {MANY}
    if fault == "swap":
        assert torch.equal(done.rows.sort(1).values, rows.sort(1).values)
    if fault == "pair":
        torch.testing.assert_close(done.rows.sum(1), rows.sum(1), atol=1e-4, rtol=0.0)
    if fault in ("swap", "pair"):
        assert set(hit.tolist()) == {2}
    if fault == "zeros":
        assert (int(hit.min()), int(hit.max())) == (8, 16)
    if fault == "stride":
        assert int(hit.max()) == 8
        assert int((hit > 0).sum()) > 200, "a bit that is stuck at what it was is no fault"
    if fault == "stale":
        assert torch.equal(done.rows[1:], rows[:-1])


def test_a_row_too_short_stays_as_it_is() -> None:
    rows = torch.randn(1, 1, generator=dice())
    for fault in ("swap", "stale"):
        assert torch.equal(corrupt(fault, rows, dice()).rows, rows)


def test_every_cell_has_its_own_name_and_seed() -> None:
    for size in SIZES.values():
        names = [cell.name for cell in cells(size, Selection())]
        assert len(set(names)) == len(names)
    one = run_cell(CELL, Cases(0), 0)
    assert one == run_cell(CELL, Cases(0), 0)
    assert one.injected == one.detected == one.corrected == 16
    assert one.located == one.located_of == 4


def test_counts_add_up_and_survive_json() -> None:
    one = Counts(injected=3, worst_ratio=0.5, bits={7: [1, 1, 0, 0]})
    two = Counts(injected=4, worst_ratio=0.2, bits={7: [1, 0, 0, 0], 9: [1, 1, 1, 1]})
    both = total([one, two])
    assert (both.injected, both.worst_ratio) == (7, 0.5)
    assert both.bits == {7: [2, 1, 0, 0], 9: [1, 1, 1, 1]}
    assert Counts.of(json.loads(json.dumps(both.to_dict()))) == both


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    """It ends with the numbers of one that was not, and does nothing twice."""
    small = replace(SIZES["quick"], rows=16, bit_rounds=1, stored=2, singles=1, clean=())
    whole = run_with(tmp_path / "whole", small)
    done = 0

    def interrupt(at: int, _all: int, _what: str) -> None:
        nonlocal done
        done = at
        if at == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_with(tmp_path / "part", small, interrupt)
    journal = tmp_path / "part" / "journal.jsonl"
    with journal.open("a", encoding="utf-8") as file:
        file.write('{"name": "cut o')
    before = len(journal.read_text(encoding="utf-8").splitlines()) - 1
    assert done == 40
    assert before == 41, "the header and 40 cells"
    assert run_with(tmp_path / "part", small).to_dict()["campaign"] == whole.to_dict()["campaign"]
    names = [json.loads(line).get("name") for line in journal.read_text().splitlines()]
    assert len(names) == len(set(names)) == 1 + len(cells(small, FEW))


def run_with(
    out: Path, size: object, tell: synthetic.Tell = lambda _done, _all, _what: None
) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", size)  # type: ignore[arg-type]
        return run_synthetic(out, size="tiny", chosen=FEW, seed=3, tell=tell)


def test_a_journal_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, {"seed": 1, "size": "quick"}) as journal:
        journal.add("one", {"injected": 1})
    with Journal(path, {"seed": 1, "size": "quick"}) as journal:
        assert journal.done == {"one": {"injected": 1}}
    with pytest.raises(
        InvalidRequest, match="another run: seed was 1, now 2; choose another --out"
    ):
        Journal(path, {"seed": 2, "size": "quick"})
    with pytest.raises(InvalidRequest, match="another run: size was 'quick', now None"):
        Journal(path, {"seed": 1})
    for text in ("no journal\n", "[1]\n", '{"journal": 99, "run": {}}\n', "\xff\n"):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(InvalidRequest, match=r"journal\.jsonl: not a journal"):
            Journal(path, {"seed": 1})


def test_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for wrong in (
        replace(FEW, distributions=("gamma",)),
        replace(FEW, dtypes=("fp8",)),
        replace(FEW, operators=("linear.magic",)),
    ):
        with pytest.raises(InvalidRequest, match=r"unknown .*; there are "):
            run_synthetic(tmp_path, chosen=wrong)
    with pytest.raises(InvalidRequest, match="unknown size 'huge'"):
        run_synthetic(tmp_path, size="huge")
    assert list(tmp_path.iterdir()) == []


def finding(counts: Counts, **other: str) -> Finding:
    fields = {"site": "accumulator", "fault": "bit", "moment": "final", "distribution": "n01"}
    return Finding(
        **{"op": "linear", "scheme": "row", "dtype": "bf16", **fields, **other},
        inner=256,
        counts=counts,
    )


def test_what_must_hold_can_fail() -> None:
    """Each of the sentences, with numbers just too bad for it."""
    bad = [
        finding(Counts(clean_checks=10**7, false_positives=1), site="clean", fault="none"),
        finding(
            Counts(visible=10_000, visible_detected=9_600, large=100_000, large_detected=99_999)
        ),
        finding(Counts(injected=10**6, detected=998_000), fault="swap"),
        finding(Counts(injected=10**6, detected=998_000), fault="pair"),
        finding(Counts(located=9_800, located_of=10_000)),
        finding(Counts(corrected=9, miscorrected=1)),
        finding(Counts(injected=10, visible=1), site="checksum", moment="always"),
    ]
    found = musts(bad)
    assert len(found) == 8
    assert {must.met for must in found} == {False}
    assert "NOT MET" in markdown(Report({}, bad))


def test_too_few_faults_tell_nothing() -> None:
    few = [finding(Counts(injected=500, detected=499), fault="swap")]
    assert [must.met for must in musts(few) if must.name.startswith("swap")] == [None]


def test_a_miss_that_the_limit_explains_is_a_miss_with_its_reason() -> None:
    """Of swaps and pairs the worst cell counts, not all K together."""
    good = finding(Counts(injected=90_000, detected=90_000), fault="pair")
    counts = Counts(injected=20_000, detected=19_970, hidden=40, hidden_detected=10)
    for hidden, reason in ((40, True), (39, False)):
        worse = replace(finding(replace(counts, hidden=hidden), fault="pair"), inner=4096)
        (must,) = [one for one in musts([good, worse]) if one.name.startswith("pairs")]
        assert must.met is False
        assert bool(must.reason) == reason
        assert "99.85% (19,970 of 20,000: linear, bf16, n01, K=4096)" in must.measured
        assert (must in failed([must])) != reason
        shown = markdown(Report({}, [good, worse]))
        assert ("missed: the 30 move neither sum" in shown) == reason
        assert ("NOT MET" in shown) != reason


@pytest.mark.parametrize(
    ("fault", "moment", "excused"),
    [("swap", "final", True), ("word", "final", False), ("zero", "early", False),
     ("word", "repeated", True)],
)  # fmt: skip
def test_only_faults_that_may_cancel_are_excused(fault: str, moment: str, excused: bool) -> None:
    counts = Counts(injected=100, large=100, large_detected=99, large_hidden=1)
    name = "repeated" if moment == "repeated" else fault
    found = [
        one for one in musts([finding(counts, fault=fault, moment=moment)])
        if one.name.startswith(f"{name}:")
    ]  # fmt: skip
    assert [one.met for one in found] == [False]
    assert bool(found[0].reason) == excused


def test_the_limit_hides_pairs_that_are_small_and_no_single_error_of_their_size() -> None:
    g = dice()
    x, weight = torch.randn(4, 256, generator=g), torch.randn(200, 256, generator=g)
    clean = x @ weight.T
    wrong = clean.clone()
    by = 0.02  # about five limits
    wrong[0, 0] += by
    wrong[1, 0], wrong[1, 2] = clean[1, 0] + by, clean[1, 2] - by  # weights 127/128 and 125/128
    wrong[2, 0], wrong[2, 1] = clean[2, 0] + by, clean[2, 1] - by  # 127/128 and -127/128
    wrong[3, 150] = torch.nan
    assert RowLimit(x, weight).hides(clean, wrong).tolist() == [False, True, False, False]


def test_the_brief_pools_no_faults() -> None:
    """One object for each (dtype, distribution, operator, scheme, site, fault)."""
    counts = Counts(injected=9, detected=8, located=3, located_of=4)
    places = [("checksum", "bit"), ("checksum", "word"), ("output", "zero"), ("output", "nan")]
    found = brief([finding(counts, site=site, fault=fault) for site, fault in places])
    assert {(one["site"], one["fault"]) for one in found} == set(places)
    for one in found:
        assert (one["detected"], one["located"], one["located_of"]) == (8, 3, 4)
        assert "bits" not in one


def test_a_check_that_sees_nothing_fails_the_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(x: torch.Tensor, weight: torch.Tensor, *_: object) -> operators.Result:
        options = {"inner_first": False, "alpha": 1.0, "beta": 1.0}
        taken = real.take(weight)
        out, verdict = torch.ops.proa.checked_linear(
            x, weight, None, *taken, correct=False, **options
        )
        return out, verdict * torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1], dtype=torch.float64)

    real = operators.OPERATORS["linear.row"]
    monkeypatch.setitem(operators.OPERATORS, "linear.row", replace(real, call=blind))
    counts = run_cell(CELL, Cases(0), 0)
    assert (counts.injected, counts.detected, counts.corrected) == (16, 0, 0)


def test_a_verdict_that_is_not_true_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def boasting(*args: object) -> operators.Result:
        out, verdict = real.call(*args)  # type: ignore[arg-type]
        verdict[2] += 1.0
        return out, verdict

    real = operators.OPERATORS["linear.row"]
    monkeypatch.setitem(operators.OPERATORS, "linear.row", replace(real, call=boasting))
    with pytest.raises(RuntimeError, match="the verdict says 17 rows were repaired, and 16 have"):
        run_cell(CELL, Cases(0), 0)


def test_an_object_has_what_the_results_need() -> None:
    found = objects(
        [
            finding(Counts(injected=10, visible=5, detected=6, visible_detected=5)),
            replace(finding(Counts(injected=10, detected=6)), inner=1024),
        ]
    )
    assert len(found) == 1
    numbers = ("clean_checks", "false_positives", "injected", "visible", "detected", "located")
    assert [found[0][name] for name in (*numbers, "corrected")] == [0, 0, 20, 5, 12, 0, 0]
    assert found[0]["rates"]["detected"] == pytest.approx([0.6, 0.3866, 0.7812], abs=1e-4)
    assert [part["inner"] for part in found[0]["parts"]] == [256, 1024]

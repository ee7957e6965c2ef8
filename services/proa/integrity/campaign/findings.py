"""What a campaign found, as the objects of campaign.json, and what must hold of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from proa.integrity.campaign.counts import Counts, bound, share, total, wilson
from proa.integrity.campaign.distributions import SMOOTH
from proa.integrity.campaign.faults import ELEMENTS, FAULTS
from proa.integrity.campaign.rows import FINAL, REPEATED

CLEAN_CHECKS_MIN = 1_000_000
# Fewer swaps or pairs in a cell tell little of a rate of PAIRS_MIN: four of these may be missed.
PAIRS_TRIED_MIN = 4_000
VISIBLE_MIN, PAIRS_MIN, LOCATED_MIN = 0.97, 0.999, 0.99
ACTIVATIONS = "activations"  # the distribution of a model's own layers
_ALWAYS = (
    "clean_checks", "false_positives", "injected", "visible", "detected", "located", "corrected",
)  # fmt: skip
_RATES = (
    ("detected", "injected"),
    ("visible_detected", "visible"),
    ("large_detected", "large"),
    ("located", "located_of"),
)


@dataclass(frozen=True)
class Finding:
    """Counts of one cell. `inner`: K; `layer`: of a model, else empty. `critical`: undetected
    faults that changed the model's answer, each with layer, fault, bits, input and answers."""

    op: str
    scheme: str
    dtype: str
    distribution: str
    site: str
    fault: str
    moment: str
    inner: int
    counts: Counts
    layer: str = ""
    critical: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def operator(self) -> str:
        return f"{self.op}.{self.scheme}"

    @property
    def key(self) -> tuple[str, ...]:
        """What campaign.json has one object for."""
        return (self.dtype, self.distribution, self.op, self.scheme, self.site, self.fault)


def objects(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """One object per (dtype, distribution, op, scheme, site, fault), with its parts by K, moment
    and layer where there are several, rates with their 95 % intervals, and what was critical."""
    found = []
    for key, group in groupby(sorted(findings, key=lambda one: one.key), lambda one: one.key):
        parts = list(group)
        counts = total(part.counts for part in parts)
        names = ("dtype", "distribution", "op", "scheme", "site", "fault")
        tree = {**dict(zip(names, key, strict=True)), **_shown(counts), "rates": rates(counts)}
        if counts.clean_checks:
            most = bound(counts.false_positives, counts.clean_checks)
            tree["false_positive_rate_max"] = most
        if len(parts) > 1:
            tree["parts"] = [_part(part) for part in parts]
        critical = [dict(one) for part in parts for one in part.critical]
        if critical:
            tree["critical"] = critical
        found.append(tree)
    return found


def brief(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The same objects in little: their counts alone, without parts, rates and bits."""
    kept = (
        *("dtype", "distribution", "op", "scheme", "site", "fault", "cleared"),
        *_ALWAYS,
        *("located_of", "hidden", "hidden_detected"),
    )
    return [{name: one[name] for name in kept if name in one} for one in objects(findings)]


def rates(counts: Counts) -> dict[str, list[float]]:
    """Rate, lower and upper end of its 95 % interval; none where nothing was tried."""
    found = {}
    for part, whole in _RATES:
        k, n = getattr(counts, part), getattr(counts, whole)
        if n:
            found[part] = [round(value, 6) for value in (k / n, *wilson(k, n))]
    return found


def _shown(counts: Counts) -> dict[str, Any]:
    """The numbers that every object has, and the others that are not zero."""
    tree = counts.to_dict()
    return {name: value for name, value in tree.items() if name in _ALWAYS or value}


def _part(part: Finding) -> dict[str, Any]:
    kept = {name: value for name, value in part.counts.to_dict().items() if value}
    kept.pop("bits", None)
    where = {"layer": part.layer} if part.layer else {"inner": part.inner}
    return {**where, "moment": part.moment, **kept}


@dataclass(frozen=True)
class Must:
    """Something that must hold. `met` None: not enough was measured to tell. `reason`: why it is
    missed, where the findings themselves show it: the limit that a check needs hides the rest."""

    name: str
    measured: str
    met: bool | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        tree = {"name": self.name, "measured": self.measured, "met": self.met}
        return {**tree, "reason": self.reason} if self.reason else tree


def musts(findings: Sequence[Finding]) -> list[Must]:
    """What must hold of the check of matrix products, as far as these findings can tell."""
    found = [_no_false_positives(findings)]
    for make in (_visible, _large, _repeated, _pairs, _located, _bit_equal, _harmless):
        found += make(findings)
    return found


def failed(found: Iterable[Must]) -> list[Must]:
    """Those that are missed and nothing explains."""
    return [one for one in found if one.met is False and not one.reason]


def _no_false_positives(findings: Sequence[Finding]) -> Must:
    counts = total(one.counts for one in findings)
    most = bound(counts.false_positives, counts.clean_checks)
    few = counts.clean_checks < CLEAN_CHECKS_MIN
    met = False if counts.false_positives else None if few else True
    name = f"no false positive in {CLEAN_CHECKS_MIN:,} clean checks"
    return Must(
        name, f"{counts.false_positives} in {counts.clean_checks:,}; rate below {most:.1e}", met
    )


def _flips(
    findings: Sequence[Finding], kinds: Iterable[str], faults: Iterable[str]
) -> list[Finding]:
    """In accumulators, of synthetic matrices, after the whole sum; scheme row alone."""
    return [one for one in _broken(findings, kinds, faults) if one.moment == FINAL]


def _broken(
    findings: Sequence[Finding], kinds: Iterable[str], faults: Iterable[str]
) -> list[Finding]:
    """The same at any moment."""
    return [
        one
        for one in findings
        if one.site == "accumulator"
        and one.distribution in kinds
        and one.fault in faults
        and one.scheme == "row"
        and not one.layer
    ]


def _visible(findings: Sequence[Finding]) -> list[Must]:
    chosen = [
        one for one in _flips(findings, (*SMOOTH, "coherent"), ("bit",)) if one.dtype == "bf16"
    ]
    return _least(
        f"visible bf16 flips found: {VISIBLE_MIN:.0%} of each distribution and K",
        chosen, lambda c: (c.visible_detected, c.visible), VISIBLE_MIN,
    )  # fmt: skip


def _large(findings: Sequence[Finding]) -> list[Must]:
    """Early, midway, late and after the whole sum. A single wrong element moves the first sum by
    all of its error: nothing excuses a miss. Several may cancel."""
    made = []
    for fault in FAULTS:
        chosen = [one for one in _broken(findings, SMOOTH, (fault,)) if one.moment != REPEATED]
        counts = total(one.counts for one in chosen)
        name = f"{fault}: errors above 1e-3 sigma found, all"
        made += _all_large(name, counts, LIMIT_HIDES if fault not in ELEMENTS else "")
    return made


def _repeated(findings: Sequence[Finding]) -> list[Must]:
    chosen = [one for one in _broken(findings, SMOOTH, FAULTS) if one.moment == REPEATED]
    name = "repeated: errors above 1e-3 sigma found, all"
    return _all_large(name, total(one.counts for one in chosen), LOOKS_LIKE_ROUNDING)


LIMIT_HIDES = "move neither sum beyond its limit and what rounding takes of it"
LOOKS_LIKE_ROUNDING = (
    "come out the same twice, and lie within what rounding may do at most or move neither sum"
    " beyond its limit"
)


def _all_large(name: str, counts: Counts, why: str) -> list[Must]:
    """All of the large ones; `why` some that the limit hides may be missed, empty: none may."""
    if not counts.large:
        return []
    measured = f"{counts.large_detected:,} of {counts.large:,}"
    missed = counts.large - counts.large_detected
    explained = bool(why) and 0 < missed == counts.large_hidden
    return [Must(name, measured, not missed, f"the {missed:,} {why}" if explained else "")]


def _pairs(findings: Sequence[Finding]) -> list[Must]:
    made = []
    for fault in ("swap", "pair"):
        tried = [one for one in _flips(findings, SMOOTH, (fault,)) if one.counts.injected]
        enough = [one for one in tried if one.counts.injected >= PAIRS_TRIED_MIN]
        if tried:
            made.append(_worst_pairs(fault, enough or tried))
    return made


def _worst_pairs(fault: str, tried: Sequence[Finding]) -> Must:
    """The cell of which the least was found. A miss that the limit explains is no chance."""
    one = min(tried, key=lambda one: share(one.counts.detected, one.counts.injected))
    part, whole = one.counts.detected, one.counts.injected
    name = f"{fault}s found: {PAIRS_MIN:.1%} of each dtype, distribution and K"
    measured = (
        f"least {_floor(part, whole)} ({part:,} of {whole:,}: {one.op}, {one.dtype},"
        f" {one.distribution}, K={one.inner})"
    )
    missed, hidden = whole - part, one.counts.hidden - one.counts.hidden_detected
    met = reached(part, whole, PAIRS_MIN)
    if met is not True and whole >= PAIRS_TRIED_MIN and missed == hidden:
        return Must(name, measured, False, f"the {missed:,} {LIMIT_HIDES}")
    return Must(name, measured, met)


def _floor(part: int, whole: int) -> str:
    """Per cent, rounded down: 99.9 % is that much at least."""
    return f"{int(10_000 * part / whole) / 100:.2f}%"


def _located(findings: Sequence[Finding]) -> list[Must]:
    chosen = _flips(findings, {one.distribution for one in findings}, ("bit",))
    name = f"row and column of a found flip: {LOCATED_MIN:.0%} right"
    return _pooled(name, chosen, lambda c: (c.located, c.located_of), LOCATED_MIN)


def _bit_equal(findings: Sequence[Finding]) -> list[Must]:
    counts = total(one.counts for one in findings)
    if not counts.corrected:
        return []
    measured = f"{counts.miscorrected} of {counts.corrected + counts.miscorrected:,} are not"
    return [
        Must("a corrected output is bit-equal to the clean one", measured, not counts.miscorrected)
    ]


def _harmless(findings: Sequence[Finding]) -> list[Must]:
    counts = total(one.counts for one in findings if one.site in ("checksum", "norms"))
    if not counts.injected:
        return []
    measured = f"{counts.visible} of {counts.injected:,} did"
    return [Must("a wrong checksum never changes an output", measured, not counts.visible)]


Pick = Callable[[Counts], tuple[int, int]]


def _pooled(name: str, chosen: Sequence[Finding], pick: Pick, least: float) -> list[Must]:
    part, whole = pick(total(one.counts for one in chosen))
    if not whole:
        return []
    return [Must(name, f"{part:,} of {whole:,}", reached(part, whole, least))]


def _least(name: str, chosen: Sequence[Finding], pick: Pick, least: float) -> list[Must]:
    """The worst of the cells must do."""
    found = [(*pick(one.counts), one) for one in chosen]
    tried = [(share(part, whole), part, whole, one) for part, whole, one in found if whole]
    if not tried:
        return []
    rate, part, whole, one = min(tried, key=lambda entry: entry[0])
    measured = (
        f"least {rate:.2%} ({part:,} of {whole:,}: {one.op}, {one.distribution}, K={one.inner})"
    )
    return [Must(name, measured, reached(part, whole, least))]


def reached(part: int, whole: int, least: float) -> bool | None:
    """Whether a rate is at least so much; None where it is not, and may be by chance."""
    if share(part, whole) >= least:
        return True
    return None if wilson(part, whole)[1] >= least else False

"""Tables of a campaign's findings, as plain text cells: for the terminal and for markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from proa.integrity.campaign.counts import Counts, bound, total, wilson
from proa.integrity.campaign.distributions import DTYPES, SMOOTH
from proa.integrity.campaign.faults import FAULTS
from proa.integrity.campaign.findings import Finding
from proa.integrity.campaign.limit import CLEAR
from proa.integrity.campaign.operators import MAIN
from proa.integrity.campaign.rows import FINAL, MOMENTS, REPEATED

T = TypeVar("T")
NONE = "-"  # nothing was tried


@dataclass(frozen=True)
class Table:
    """`note`: a line below the title."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(findings: Sequence[Finding]) -> list[Table]:
    """Those that have rows: all about the main operator or a model, less about other operators."""
    names = _unique(one.operator for one in findings)
    first = MAIN if MAIN in names else next(iter(names), MAIN)
    main = [one for one in findings if one.layer or one.operator == first]
    made = [
        _clean(findings),
        _flips(main),
        *_bits(main),
        _kinds(main),
        _hidden(main),
        _moments(main),
        _sites(main),
        _others([one for one in findings if one not in main]),
        _layers(findings),
    ]
    return [table for table in made if table.rows]


def per_cent(part: int, whole: int) -> str:
    """As floor: 100 is all of them."""
    if not whole:
        return NONE
    return "100" if part == whole else f"{int(10_000 * part / whole) / 100:.2f}"


def with_interval(part: int, whole: int) -> str:
    if not whole:
        return NONE
    low, high = wilson(part, whole)
    return f"{per_cent(part, whole)} ({100 * low:.2f} to {100 * high:.2f})"


def _clean(findings: Sequence[Finding]) -> Table:
    rows = []
    chosen = [one for one in findings if one.site == "clean"]
    for (operator, name), group in _by(chosen, lambda one: (one.operator, one.distribution)):
        counts = total(one.counts for one in group)
        most = bound(counts.false_positives, counts.clean_checks)
        texts = (
            f"{counts.clean_checks:,}", str(counts.false_positives), f"{most:.1e}",
            f"{counts.cleared:,}", f"{counts.worst_ratio:.2f}",
        )  # fmt: skip
        rows.append((operator, name, *texts))
    note = "Row checks of undisturbed products. Bound: of the false positive rate, one-sided 95 %."
    columns = ("operator", "data", "checks", "false positives", "bound", "cleared", "worst ratio")
    return Table("Clean", note, columns, tuple(rows))


def _flips(findings: Sequence[Finding]) -> Table:
    chosen = [
        one
        for one in findings
        if (one.site, one.fault, one.moment) == ("accumulator", "bit", FINAL) and not one.layer
    ]
    data = _unique(one.distribution for one in chosen)
    rows = []
    measures: tuple[tuple[str, Callable[[Counts], tuple[int, int]]], ...] = (
        ("visible", lambda c: (c.visible_detected, c.visible)),
        ("large", lambda c: (c.large_detected, c.large)),
    )
    for name, pick in measures:
        for dtype in _dtypes(chosen):
            for inner in sorted({one.inner for one in chosen}):
                picked = [
                    pick(
                        total(
                            one.counts
                            for one in chosen
                            if (one.dtype, one.inner, one.distribution) == (dtype, inner, kind)
                        )
                    )
                    for kind in data
                ]
                rows.append((name, dtype, str(inner), *(per_cent(*pair) for pair in picked)))
    note = (
        "Found, %, of single flips of accumulator bits, every bit alike. Visible: the stored output"
        " changes; large: by more than 1e-3 of the outputs' sigma."
    )
    return Table("Bit flips", note, ("flips", "dtype", "K", *data), tuple(rows))


def _bits(findings: Sequence[Finding]) -> list[Table]:
    """Per bit of the accumulator, normal data where there is any."""
    chosen = [one for one in findings if one.counts.bits]
    kind = "n01" if any(one.distribution == "n01" for one in chosen) else None
    chosen = [one for one in chosen if kind in (None, one.distribution)]
    series = _by(chosen, lambda one: (one.dtype, one.inner))
    found = [
        (key, total(one.counts for one in group).bits)
        for key, group in sorted(series, key=lambda entry: (_order(entry[0][0]), entry[0][1]))
    ]
    rows = [
        (str(bit), *(per_cent(bits[bit][1], bits[bit][0]) for _, bits in found))
        for bit in range(32)
        if found and all(bit in bits for _, bits in found)
    ]
    columns = ("bit", *(f"{dtype} K={inner}" if inner else dtype for (dtype, inner), _ in found))
    note = f"Found, %, by the accumulator's bit that flipped; data: {kind or 'all'}."
    return [Table("Per bit", note, columns, tuple(rows))]


def _kinds(findings: Sequence[Finding]) -> Table:
    chosen = [
        one
        for one in findings
        if one.site == "accumulator" and one.moment == FINAL and _typical(one)
    ]
    rows = []
    for fault in (fault for fault in FAULTS if any(one.fault == fault for one in chosen)):
        for dtype in _dtypes(chosen):
            counts = total(one.counts for one in chosen if (one.fault, one.dtype) == (fault, dtype))
            rows.append(
                (
                    fault, dtype, f"{counts.injected:,}",
                    per_cent(counts.detected, counts.injected),
                    with_interval(counts.visible_detected, counts.visible),
                    per_cent(counts.located, counts.located_of),
                )
            )  # fmt: skip
    note = f"In accumulators, after the whole sum; data: {_data(chosen)}."
    columns = ("fault", "dtype", "injected", "found %", "visible found %", "located %")
    return Table("Faults by kind", note, columns, tuple(rows))


def _hidden(findings: Sequence[Finding]) -> Table:
    """Of what several elements have wrong, the errors may cancel in both sums."""
    chosen = [
        one
        for one in findings
        if (one.site, one.moment) == ("accumulator", FINAL) and _typical(one) and not one.layer
    ]
    chosen = [one for one in chosen if one.fault in ("swap", "pair")]
    rows = []
    for (fault, inner), group in _by(chosen, lambda one: (one.fault, one.inner)):
        counts = total(one.counts for one in group)
        clear = counts.injected - counts.hidden
        found = counts.detected - counts.hidden_detected
        least = min(
            per_cent(mine.detected, mine.injected)
            for _, some in _by(group, lambda one: one.dtype)
            for mine in [total(one.counts for one in some)]
        )
        rows.append(
            (
                fault, str(inner), f"{counts.injected:,}",
                with_interval(counts.detected, counts.injected), least,
                f"{found:,} of {clear:,}",
            )
        )  # fmt: skip
    rows.sort(key=lambda row: (row[0], int(row[1])))
    note = (
        f"After the whole sum; data: {_data(chosen)}. Clear of the limit: that move one of the two"
        f" sums by more than {CLEAR:g} limits, the limit and what rounding takes of it at most."
    )
    columns = ("fault", "K", "injected", "found %", "least dtype %", "found of those clear of it")
    return Table("Swaps and pairs", note, columns, tuple(rows))


def _moments(findings: Sequence[Finding]) -> Table:
    names = (*MOMENTS, FINAL, REPEATED)
    chosen = [one for one in findings if one.site == "accumulator" and _typical(one)]
    early = {one.inner for one in chosen if one.moment in MOMENTS}
    chosen = [one for one in chosen if one.inner in early]
    rows = []
    for fault in (fault for fault in FAULTS if any(one.fault == fault for one in chosen)):
        counts = [
            total(one.counts for one in chosen if (one.fault, one.moment) == (fault, moment))
            for moment in names
        ]
        cells = (per_cent(one.visible_detected, one.visible) for one in counts)
        rows.append((fault, *cells))
    inners = ", ".join(map(str, sorted(early)))
    note = (
        f"Visible ones found, %; K {inners}; data: {_data(chosen)}. Early, mid, late: in the"
        " partial sum after an eighth, a half, seven eighths of K. Repeated: the recomputation"
        " goes wrong in the same way."
    )
    return Table("Faults by moment", note, ("fault", *names), tuple(rows) if early else ())


def _sites(findings: Sequence[Finding]) -> Table:
    chosen = [one for one in findings if one.site not in ("clean", "accumulator")]
    chosen = [one for one in chosen if _typical(one)]
    rows = []
    for (site, fault), group in _by(chosen, lambda one: (one.site, one.fault)):
        counts = total(one.counts for one in group)
        rows.append(
            (
                site, fault, f"{counts.injected:,}", f"{counts.visible:,}",
                per_cent(counts.detected, counts.injected),
                with_interval(counts.visible_detected, counts.visible),
                per_cent(counts.located, counts.located_of),
                per_cent(counts.corrected, counts.detected),
            )
        )  # fmt: skip
    note = (
        "Operand: an input as the product alone sees it; operand-weight: a weight, as one sum sees"
        " it. Weight, checksum, norms: in memory, afterwards. Output: after its check, which sees"
        " nothing of it, by design; a later layer sees what is no number."
    )
    columns = (
        "site", "fault", "injected", "visible", "found %", "visible found %", "located %",
        "corrected %",
    )  # fmt: skip
    return Table("Other sites", note, columns, tuple(rows))


def _others(findings: Sequence[Finding]) -> Table:
    rows = []
    chosen = [one for one in findings if one.site != "clean" and _typical(one)]
    for key, group in _by(chosen, lambda one: (one.operator, one.site, one.moment)):
        counts = total(one.counts for one in group)
        rows.append(
            (
                *key, f"{counts.injected:,}", f"{counts.visible:,}",
                per_cent(counts.detected, counts.injected),
                with_interval(counts.visible_detected, counts.visible),
                per_cent(counts.located, counts.located_of),
                per_cent(counts.corrected, counts.detected),
            )
        )  # fmt: skip
    note = f"All kinds of faults together; data: {_data(chosen)}."
    columns = (
        "operator", "site", "moment", "injected", "visible", "found %", "visible found %",
        "located %", "corrected %",
    )  # fmt: skip
    return Table("Other operators", note, columns, tuple(rows))


def _layers(findings: Sequence[Finding]) -> Table:
    chosen = [one for one in findings if one.layer and one.site not in ("clean", "output")]
    rows = []
    for (layer, dtype), group in _by(chosen, lambda one: (one.layer, one.dtype)):
        counts = total(one.counts for one in group)
        critical = sum(len(one.critical) for one in group)
        rows.append(
            (
                layer, dtype, f"{counts.injected:,}", f"{counts.visible:,}",
                with_interval(counts.visible_detected, counts.visible),
                per_cent(counts.located, counts.located_of),
                per_cent(counts.corrected, counts.detected),
                f"{counts.answers:,}", str(critical),
            )
        )  # fmt: skip
    note = (
        "All sites but the output. Answers: faults that change the model's answer where nothing is"
        " corrected; critical: those of them that no check found."
    )
    columns = (
        "layer", "dtype", "injected", "visible", "visible found %", "located %", "corrected %",
        "answers", "critical",
    )  # fmt: skip
    return Table("Layers", note, columns, tuple(rows))


def _by(findings: Iterable[Finding], key: Callable[[Finding], T]) -> list[tuple[T, list[Finding]]]:
    """Groups in the order in which their keys appear."""
    groups: dict[T, list[Finding]] = {}
    for one in findings:
        groups.setdefault(key(one), []).append(one)
    return list(groups.items())


def _typical(one: Finding) -> bool:
    """Neither cancelling nor coherent: what is pooled in the tables of kinds, moments and sites."""
    return bool(one.layer) or one.distribution in SMOOTH


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _data(findings: Iterable[Finding]) -> str:
    return ", ".join(_unique(one.distribution for one in findings))


def _dtypes(findings: Iterable[Finding]) -> list[str]:
    return sorted({one.dtype for one in findings}, key=_order)


def _order(dtype: str) -> int:
    return list(DTYPES).index(dtype) if dtype in DTYPES else len(DTYPES)

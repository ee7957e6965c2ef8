"""Which cells a campaign on synthetic matrices has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from proa.integrity.campaign.cells import Cell
from proa.integrity.campaign.distributions import DEGENERATE, DTYPES, REGULAR
from proa.integrity.campaign.faults import ELEMENTS, FAULTS
from proa.integrity.campaign.operators import MAIN, OPERATORS
from proa.integrity.campaign.rows import ALWAYS, FINAL, MOMENTS, REPEATED

_OFTEN = ("bit", "swap", "pair")  # whose rates are to be known within a tenth of a per cent
Shape = tuple[int, int, int, int]  # M, N, K, rounds


@dataclass(frozen=True)
class Size:
    """How much of everything. `inners`: K of faults in accumulators; `inner`: K of all others.
    `bit_rounds`, `rounds`: times `rows` faults of single bits, swaps and pairs, of all other kinds.
    `singles`: faults tried one by one, of each kind and round; `stored`: of weights and checksums;
    `mid_sum`: kinds of faults on the way to the whole sum."""

    inners: tuple[int, ...]
    inner: int
    rows: int
    bit_rounds: int
    rounds: int
    singles: int
    stored: int
    clean: tuple[Shape, ...]
    mid_sum: tuple[str, ...] = tuple(FAULTS)


SIZES = {
    "quick": Size(
        inners=(256,), inner=256, rows=64, bit_rounds=4, rounds=1, singles=4, stored=16,
        clean=((1024, 512, 64, 1), (256, 512, 512, 1)),
    ),
    "full": Size(
        inners=(256, 1024, 4096), inner=1024, rows=256, bit_rounds=16, rounds=4, singles=16,
        stored=128,
        clean=(
            (4096, 384, 64, 2), (4096, 512, 512, 2), (2048, 512, 2048, 2), (256, 512, 8192, 2),
            (1, 512, 1024, 2),
        ),
    ),
}  # fmt: skip


def lesser(size: Size) -> Size:
    """For operators beside the main one: one K, and a quarter of the rest."""
    return replace(
        size,
        inners=(size.inner,),
        bit_rounds=max(1, size.bit_rounds // 4),
        rounds=max(1, size.rounds // 4),
        singles=max(1, size.singles // 4),
        stored=max(1, size.stored // 4),
        clean=size.clean[:2],
        mid_sum=("bit", "word", "zero"),
    )


@dataclass(frozen=True)
class Selection:
    """What of it: names of operators, dtypes and distributions."""

    operators: tuple[str, ...] = tuple(OPERATORS)
    dtypes: tuple[str, ...] = tuple(DTYPES)
    distributions: tuple[str, ...] = tuple(REGULAR)


def cells(full: Size, chosen: Selection) -> list[Cell]:
    """Every cell, those with the same operands next to each other."""
    found: list[Cell] = []
    for operator in chosen.operators:
        size = full if operator == MAIN else lesser(full)
        for dtype in chosen.dtypes:
            for distribution in chosen.distributions:
                found += _faulty(size, _Of(operator, dtype, distribution))
            for distribution in (*chosen.distributions, *DEGENERATE):
                found += _clean(size, _Of(operator, dtype, distribution))
    return found


@dataclass(frozen=True)
class _Of:
    """What the cells of one (operator, dtype, distribution) have in common."""

    operator: str
    dtype: str
    distribution: str

    def cell(
        self,
        inner: int,
        site: str,
        fault: str,
        moment: str,
        *,
        rows: int,
        outputs: int = 128,
        rounds: int = 1,
        singles: int = 0,
    ) -> Cell:
        return Cell(
            operator=self.operator,
            dtype=self.dtype,
            distribution=self.distribution,
            inner=inner,
            site=site,
            fault=fault,
            moment=moment,
            rows=rows,
            outputs=outputs,
            rounds=rounds,
            singles=singles,
        )


def _clean(size: Size, of: _Of) -> Iterator[Cell]:
    for rows, outputs, inner, rounds in size.clean:
        yield of.cell(inner, "clean", "none", FINAL, rows=rows, outputs=outputs, rounds=rounds)


def _faulty(size: Size, of: _Of) -> Iterator[Cell]:
    rows, singles = size.rows, size.singles
    for inner in size.inners:
        for fault in FAULTS:
            rounds = size.bit_rounds if fault in _OFTEN else size.rounds
            yield of.cell(
                inner, "accumulator", fault, FINAL, rows=rows, rounds=rounds, singles=singles
            )
    inner = size.inner
    for fault in FAULTS:
        yield of.cell(inner, "accumulator", fault, REPEATED, rows=rows, singles=4 * singles)
    for step, fault in product(OPERATORS[of.operator].steps, FAULTS):
        yield of.cell(inner, step, fault, FINAL, rows=rows, singles=max(singles, size.stored // 4))
    for moment in MOMENTS:
        for site in ("accumulator", "operand", "operand-weight"):
            for fault in size.mid_sum if site == "accumulator" else _elements(size.mid_sum):
                yield of.cell(inner, site, fault, moment, rows=rows)
    yield from _stored(size, of)


def _stored(size: Size, of: _Of) -> Iterator[Cell]:
    """In memory: outputs after their check, weights and what is kept of them."""
    rows, inner = size.rows, size.inner
    for fault in ELEMENTS:
        yield of.cell(inner, "output", fault, FINAL, rows=rows)
    for site in ("weight", *OPERATORS[of.operator].stored):
        for fault in ELEMENTS:
            yield of.cell(inner, site, fault, ALWAYS, rows=rows // 4, singles=size.stored)


def _elements(faults: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(fault for fault in faults if fault in ELEMENTS)

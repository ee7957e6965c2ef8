"""Writes codes.json: golden vectors of proa.codes, in exact fractions, without proa or numpy.

    python tests/unit/golden/generate_codes.py

Only a change of the code itself (and of its VERSION) is a reason to run it again: parity models
are trained against these numbers.
"""

from __future__ import annotations

import json
from fractions import Fraction
from itertools import combinations
from pathlib import Path

SHAPE = (1, 3, 2, 2)
ROWS = (
    (1, 1, 1, 1),
    (1, -1, -2, 2),
    (1, Fraction(1, 2), -1, -2),
)
CASES = (("sum", 2, 1), ("sum", 2, 2), ("sum", 3, 2), ("sum", 4, 1), ("sum", 4, 3),
         ("mean", 2, 1), ("mean", 4, 1), ("replica", 1, 2))  # fmt: skip


def query(position: int) -> list[Fraction]:
    """12 values of one query [1, 3, 2, 2]: quarters, so that fp32 holds them exactly."""
    return [Fraction((7 * position + 5 * n + n * n) % 23 - 11, 4) for n in range(12)]


def prediction(position: int) -> list[Fraction]:
    return [Fraction((11 * position + 3 * n) % 17 - 8, 8) for n in range(4)]


def row_of(coder: str, k: int, row: int) -> list[Fraction]:
    if coder == "sum":
        return [Fraction(c) for c in ROWS[row][:k]]
    return [Fraction(1, k)] * k


def weighted(weights: list[Fraction], terms: list[list[Fraction]]) -> list[Fraction]:
    return [sum((w * t[n] for w, t in zip(weights, terms, strict=True)), Fraction(0))
            for n in range(len(terms[0]))]  # fmt: skip


def case(coder: str, k: int, r: int) -> dict[str, object]:
    queries = [query(i) for i in range(k)]
    predictions = [prediction(i) for i in range(k)]
    rows = [row_of(coder, k, j) for j in range(r)]
    return {
        "coder": coder,
        "k": k,
        "r": r,
        "coefficients": [[float(c) for c in row] for row in rows],
        "queries": [[float(v) for v in q] for q in queries],
        "parity_queries": [[float(v) for v in weighted(row, queries)] for row in rows],
        "predictions": [[float(v) for v in p] for p in predictions],
        "targets": [[float(v) for v in weighted(row, predictions)] for row in rows],
        "erasures": [list(e) for n in range(1, r + 1) for e in combinations(range(k), n)],
    }


def main() -> None:
    document = {
        "note": "written by generate_codes.py beside this file",
        "query_shape": SHAPE,
        "cases": [case(*which) for which in CASES],
    }
    path = Path(__file__).with_name("codes.json")
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Bit flips under real Triton processes with `protection`: is an answer ever wrong, and unsaid?"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.triton, pytest.mark.long, pytest.mark.timeout(1800)]

SLOW = 3  # its exit code where a repaired answer is surely more than twice as late
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "abft_serving.py"


def test_no_answer_is_wrong_unsaid_in_10_000_requests(tmp_path: Path) -> None:
    """1 % of the requests are hit by a flip of one bit of one accumulator."""
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], check=False, timeout=1700
    )
    report = json.loads(out.read_text(encoding="utf-8"))
    # How long a repaired answer takes is reported, and no reason to fail on a shared machine.
    assert done.returncode in (0, SLOW), report
    assert report["repaired_samples"] == report["answers"]["repaired"]
    assert 0 < report["p99_ratio_least"] <= report["p99_ratio"]
    logging.getLogger(__name__).info(
        "p99 of %d repaired answers: %s times that of clean ones, surely %s; at most 2 is the goal",
        *(report[key] for key in ("repaired_samples", "p99_ratio", "p99_ratio_least")),
    )
    answers = report["answers"]
    assert report["errors"] == []
    assert answers["clean"] + answers["repaired"] + len(report["undetected"]) == 10_000
    # A third of the bits of an fp32 accumulator are below what a check can see (docs/abft.md).
    assert 40 <= answers["repaired"] <= 120
    assert answers.get("clean and different", 0) == len(report["undetected"]) < 80
    assert "repaired and different" not in answers
    assert answers["unchecked"] == 0
    assert all(one["of_allowed"] <= 1.0 for one in report["undetected"])
    assert report["allowed_of_sigma"] < 0.01

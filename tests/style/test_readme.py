"""The numbers in README.md are those of the run in docs/results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_s_numbers_were_measured_and_not_typed():
    path = ROOT / "benchmarks" / "readme_block.py"
    spec = importlib.util.spec_from_file_location("readme_block", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    report = json.loads((ROOT / "docs/results/demo.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert module.with_block(readme, module.block(report)) == readme

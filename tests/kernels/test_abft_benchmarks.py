"""The benchmarks of checked products: what they allow, what they measure, the page they write."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proa_kernels import Plan, Verdict, protect
from proa_kernels.injection import flip, injecting

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROW_KEYS = {
    *("device", "network", "layer", "shape", "scheme"),
    *("base_us", "protected_us", "vendor_us", "overhead"),
}
CELL = {
    "dtype": "bfloat16",
    "distribution": "n01",
    "scheme": "row",
    "site": "accumulator",
    "fault": "single",
    "clean_checks": 1000,
    "false_positives": 0,
    "injected": 200,
    "visible": 100,
    "detected": 99,
    "located": 98,
    "corrected": 99,
}


@pytest.fixture(scope="module", autouse=True)
def _on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def test_what_a_flip_may_do_without_being_found_is_what_it_does(tmp_path: Path) -> None:
    """The long test over tritonserver (tests/e2e/test_protection.py) judges answers by this."""
    serving = importlib.import_module("abft_serving")
    serving.write_spec(tmp_path)
    program = torch.export.load(tmp_path / "mlp.pt2")
    network = protect(program, Plan("correct"))[0].module(check_guards=False)
    dice, rng = random.Random(3), np.random.default_rng(3)
    found = {"clean": 0, "corrected": 0}
    worst = 0.0
    for _ in range(300):
        query = rng.standard_normal((1, serving.SIZES[0])).astype(np.float32)
        clean, _ = network(torch.from_numpy(query))
        layer, bits = dice.randrange(3), 1 << dice.randrange(32)
        column = dice.randrange(serving.SIZES[1 + layer])
        seen: list[int] = []

        def tamper(accumulators: torch.Tensor, attempt: int, *of: Any, seen: Any = seen) -> None:
            layer, column, bits = of
            if not attempt:
                seen.append(attempt)
                if len(seen) == layer + 1:
                    flip(accumulators, (0, column), bits)

        fault = (layer, column, bits)
        with injecting(lambda acc, attempt, fault=fault: tamper(acc, attempt, *fault)):
            hit, verdict = network(torch.from_numpy(query))
        status = Verdict.read(verdict).status
        found[status] += 1
        off = (hit - clean).abs().detach().double().numpy()[0]
        if status == "corrected":
            assert not off.any()
        else:
            worst = max(worst, float((off / serving.allowance(query[0].astype(float))).max()))
    assert min(found.values()) > 60, found
    assert 1e-3 < worst <= 1.0, "nothing is beyond what is allowed, which is not everything"


def test_a_small_run_has_its_rows_and_its_page(tmp_path: Path) -> None:
    abft = importlib.import_module("abft")
    argv = ["--results", str(tmp_path)]
    small = ["--networks", "dlrm-bottom", "--batches", "1,8", "--repeats", "2", "--small"]
    assert abft.main([*argv, *small]) == 0
    tree = json.loads((tmp_path / "abft.json").read_text())
    cpu = [row for row in tree["rows"] if "cpu_overhead" in row]
    assert {(r["network"], r["batch"]) for r in cpu} == {("dlrm-bottom", 1), ("dlrm-bottom", 8)}
    assert {r["layer"] for r in cpu} == {"all", "layers.0", "layers.1", "layers.2"}
    for row in cpu:
        assert row.keys() >= ROW_KEYS
        assert row["base_us"] == row["vendor_us"] > 0
        assert row["protected_us"] == pytest.approx(row["base_us"] * (1 + row["overhead"]), rel=0.1)
    unmeasured = [row for row in tree["rows"] if row not in cpu]
    assert unmeasured
    assert all(row["note"] == "not measured" and row["command"] for row in unmeasured)
    page = (tmp_path / "abft.md").read_text()
    assert "| dlrm-bottom | row | 100.0 % |" in page
    assert "### Products of dlrm-bottom, batch " in page
    assert "The cost of `row` by kind: linear 100 %." in page
    assert "`row` on resnet-50 at batch 8, at most 15 %: not measured" in page
    assert "## GPU\n\nNot measured: `" in page
    assert page.rstrip().endswith("Not measured: `proa abft campaign`.")


def test_other_results_are_merged(tmp_path: Path) -> None:
    abft = importlib.import_module("abft")
    cpu = {
        "device": "a CPU",
        "network": "resnet-50",
        "batch": 8,
        "layer": "all",
        "shape": "8x3",
        "base_us": 1e6,
        "protected_us": 1.2e6,
        "vendor_us": 1e6,
        "overhead": 0.2,
        "overhead_quartiles": [0.19, 0.21],
        "cpu_overhead": 0.2,
    }
    run = {
        "device": "a CPU",
        "torch": "2",
        "cores": 2,
        "repeats": 3,
        "small": False,
        "load_before": 1.0,
        "load_after": 2.0,
    }
    rows = [{**cpu, "scheme": "row"}, {**cpu, "scheme": "dup", "cpu_overhead": 1.0}]
    old = {"run": run, "rows": rows, "coverage": [], "campaign": []}
    (tmp_path / "abft.json").write_text(json.dumps(old))
    whole = {"layers": 16, "base_us": 100.0, "vendor_us": 90.0, "tile_percent": 6.0}
    whole |= {"fused_percent": 4.0, "dup_percent": 100.0, "guided_percent": 3.0}
    whole |= {"paper_t4_global_percent": 3.4, "paper_t4_guided_percent": 3.1}
    networks = {"vgg-16": whole, "dlrm": {"layers": 3, "note": "not measured: again"}}
    gpu = {"device": "NVIDIA H200", "network": "vgg-16", "layer": "conv1", "shape": "8x8x8"}
    gpu |= {"scheme": "tile", "base_us": 100.0, "protected_us": 103.0, "vendor_us": 90.0}
    gpu["overhead"] = 0.03
    bad = {**gpu, "network": "dlrm", "note": "not measured: again", "overhead": None}
    found = {"rows": [gpu, bad], "networks": networks}
    (tmp_path / "abft-gpu.json").write_text(json.dumps(found))
    (tmp_path / "abft-campaign.json").write_text(json.dumps({"campaign": [CELL, CELL]}))
    assert abft.main(["--results", str(tmp_path), "--merge-only"]) == 0
    tree = json.loads((tmp_path / "abft.json").read_text())
    assert tree["rows"] == [*rows, gpu, bad]
    assert tree["campaign"] == [CELL, CELL]
    assert tree["gpu"] == {"networks": networks}
    page = (tmp_path / "abft.md").read_text()
    assert "at most 15 %: missed, +20.0 % of CPU time" in page
    assert "| vgg-16 | 16 | 100.0 | 90.0 | +6.0 % | +4.0 % | +100.0 % | +3.0 % | +3.4 % |" in page
    assert "| dlrm | 3 | not measured: again |" in page
    assert "1 rows of single products are in [abft.json](abft.json), 1 more were not" in page
    assert "2,000 clean checks, 0 false alarms" in page
    assert "| row | bfloat16 | accumulator | single | 400 | 200 | 198 | 196 | 198 |" in page


@pytest.mark.parametrize(
    ("name", "flops_g"),
    # GFLOP of one input, as published: a multiplication and an addition each count.
    [("resnet-18", 3.6), ("resnet-50", 8.2), ("transformer-block", 1.86), ("dlrm-top", 0.0008)],
)
@pytest.mark.long
def test_the_networks_are_what_they_are_called(name: str, flops_g: float) -> None:
    networks = importlib.import_module("abft_networks")
    program = networks.NETWORKS[name].exported()
    _, coverage = protect(program, Plan(default="none"))
    total = sum(layer.flops for layer in coverage.layers)
    assert total / 1e9 == pytest.approx(flops_g, rel=0.03)

"""The convolution's, the emulated product's and the benchmark's kernels compile for compute
capability 9.0 within its limits. Without a GPU: nothing is launched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
SHARED_BYTES_MAX = 227 * 1024  # of one block on compute capability 9.0


@pytest.fixture
def compiled(tmp_path: Path) -> Any:
    def run(what: str) -> list[dict[str, Any]]:
        environment = {key: one for key, one in os.environ.items() if key != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = str(tmp_path)
        script = Path(__file__).with_name("compiling_conv.py")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(script), what],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(one["shared_bytes"] <= SHARED_BYTES_MAX for one in found), found
        return found

    return run


def test_convolutions(compiled: Any) -> None:
    """On the matrix unit, x read 16 bytes at a time; what runs when clean spills nothing."""
    found = compiled("conv")
    names = [one["kernel"] for one in found]
    tile = ["product_kernel", "settle_kernel"]
    assert names == [*tile, "product_kernel", "thin_kernel", "settle_kernel"]
    for one in found:
        assert one["matrix_units"] > 0, one
        assert one["wide_copies"] > 0, one
        assert one["kernel"] == "settle_kernel" or one["spill_bytes"] == 0, one


def test_emulated_products(compiled: Any) -> None:
    """Wide tiles spill little, of the accumulator that only promotions touch; narrow ones none."""
    found = compiled("emulated")
    products = [one for one in found if one["kernel"] == "_product"]
    assert len(products) == 7
    for one in products:
        assert one["matrix_units"] > 0, one
        assert one["spill_bytes"] <= 512, one
    assert sum(one["spill_bytes"] == 0 for one in products) == 3
    assert {one["kernel"] for one in found} == {"_scan", "_split", "_product", "_ieee"}


def test_the_benchmarks_kernels(compiled: Any) -> None:
    found = compiled("benchmark")
    plain = [one for one in found if one["kernel"] == "plain_kernel"]
    assert len(plain) == 4
    assert all(one["matrix_units"] > 0 and one["spill_bytes"] == 0 for one in plain)

"""The GPU kernels compile for compute capability 9.0, and production ones hold no injector.

Without a GPU: Triton's compiler and its assembler run, nothing is launched. In processes of their
own, since this one has Triton's interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import proa_kernels

SCRIPT = Path(__file__).with_name("compiling.py")
SHARED_BYTES_MAX = 227 * 1024  # of one block on compute capability 9.0
LARGE = [4096, 4096, 4096]
DECODE = {"dtype": "bfloat16", "scheme": "tile", "sizes": [1, 4096, 4096], "correct": True}


def compiled(requests: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options],
        input="\n".join(map(json.dumps, requests)), env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def plain(ttir: str) -> list[str]:
    """Without the places in the source."""
    lines = (re.sub(r"loc\((?:[^()]|\([^()]*\))*\)", "", one) for one in ttir.splitlines())
    return [one.strip() for one in lines if one.strip() and not one.startswith("#loc")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


CONV = {"op": "conv", "dtype": "bfloat16", "sizes": [2, 64, 128, 28, 3], "correct": True}
CHECKED = {"tile": ["product_kernel"], "fused": ["product_kernel", "thin_kernel"]}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("op", [DECODE, pytest.param(CONV, marks=pytest.mark.long)])
def test_production_kernels_are_those_of_a_source_without_an_injector(op: dict[str, Any]) -> None:
    """Both schemes: TTIR alike but for places in the source. And with a fault's tensor it is not
    alike, except of `thin`, which has nothing to inject into."""
    requests = [op | {"scheme": scheme} for scheme in CHECKED]
    found = compiled([*requests, *(one | {"fault": True} for one in requests)], "--ttir")
    half = len(found) // 2
    ours, with_fault = found[:half], found[half:]
    stripped = compiled(requests, "--ttir", "--stripped")
    names = [[one["kernel"] for one in some] for some in (ours, with_fault, stripped)]
    assert names == [[name for some in CHECKED.values() for name in (*some, "settle_kernel")]] * 3
    for mine, other, faulty in zip(ours, stripped, with_fault, strict=True):
        assert len(plain(mine["ttir"])) > 100
        assert plain(mine["ttir"]) == plain(other["ttir"])
        assert "xor" not in mine["ttir"]
        hurt = mine["kernel"] != "thin_kernel"
        assert (plain(mine["ttir"]) != plain(faulty["ttir"])) == hurt
        assert ("xor" in faulty["ttir"]) == hurt


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_kernel_assembles(dtype: str) -> None:
    """Half types on the matrix unit, within shared memory; what runs when clean hardly spills."""
    requests = [
        {"dtype": dtype, "scheme": scheme, "sizes": sizes, "correct": True, "inner_first": first}
        for scheme in ("tile", "fused")
        for sizes, first in (([1, 4096, 4096], False), ([50, 1024, 512], True), (LARGE, False))
    ]
    found = compiled(requests)
    assert len(found) == 3 * 2 + 3 * 3
    kinds: dict[str, set[str]] = {}
    for one in found:
        assert one["shared_bytes"] <= SHARED_BYTES_MAX, one
        assert bool(one["shapes"]) == (dtype != "float32"), one
        kinds.setdefault(one["kernel"], set()).update(s.split("n")[0] for s in one["shapes"])
        if one["kernel"] != "settle_kernel":
            assert one["spill_bytes"] <= (16 if dtype == "float32" else 0), one
    # The recomputation rounds as the product does only with the same instructions.
    assert kinds["product_kernel"] == kinds["settle_kernel"]


def test_no_triton_is_needed_without_a_gpu() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, proa_kernels\n"
        "linear = proa_kernels.ABFTLinear(torch.nn.Linear(4, 3))\n"
        "linear(torch.ones(2, 4)); assert linear.last().checks == 2\n"
        "torch.ops.proa.emulated_mm(torch.ones(2, 4), torch.ones(4, 3), 6)\n"
    )
    root = str(Path(proa_kernels.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)

"""What checked matrix products cost on this CPU, and the page of all that was measured of them.

Each network runs unprotected, with `row` and with `dup` (computed twice), in turns within one run,
so that a busy machine slows all alike: the overheads are medians of paired ratios. Then each of
its products by itself. One thread. Campaign and GPU results are merged from their own files; what
was not measured says so and names the command. It starts itself anew with the malloc settings of a
worker and writes docs/results/abft.json and abft.md.

    .venv/bin/python benchmarks/abft.py
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from abft_gpu_rows import gpu_cells, gpu_rows
from abft_networks import NETWORKS
from abft_page import page

from proa.integrity.campaign.report import json_lines
from proa.integrity.profile.layers import calls_of, example_inputs, products_of
from proa.integrity.profile.machine import device_of
from proa.integrity.profile.timing import CpuTimer, Effort, Timing, paired
from proa.worker.launch import MALLOC
from proa_kernels import Plan, Verdict, protect

NONE, SCHEMES, BATCHES = "none", ("row", "dup"), (1, 8)
WHOLE = "all"
RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
CAMPAIGN, GPU, SERVING = "abft-campaign.json", "abft-gpu.json", "abft-serving.json"
SERVING_COMMAND = "python benchmarks/abft_serving.py --out docs/results/abft-serving.json"
MERGED = ("rows", "campaign", "shapes")  # of the GPU: rows are made of its shapes
Rows = list[dict[str, Any]]


def measure(
    name: str, batches: Sequence[int], effort: Effort, device: str, *, small: bool
) -> tuple[Rows, Rows]:
    """A network's rows, and what its schemes cover. Weights are made outside of inference mode, as
    a worker loads them: torch counts no changes of those made within."""
    program = NETWORKS[name].exported(small=small)
    products = products_of(program)
    protected, coverage = {}, []
    for scheme in SCHEMES:
        layers = {one.layer.layer: scheme for one in products if scheme in one.schemes}
        # What has no `row` has a scheme of its own that stands for it (attention).
        plan = Plan("correct", "row") if scheme == "row" else Plan("correct", NONE, layers)
        protected[scheme], found = protect(program, plan)
        unchecked = sorted({f"{one.op}: {one.reason}" for one in found.unchecked})
        coverage.append(
            {"network": name, "scheme": scheme, "share": found.share, "unchecked": unchecked}
        )
    rows: Rows = []
    for batch in batches:
        inputs = example_inputs(program, batch, "cpu")
        modules = {NONE: program.module(check_guards=False)}
        modules |= {s: p.module(check_guards=False) for s, p in protected.items()}
        with torch.inference_mode():
            _must_agree(modules, inputs)
            calls = {s: partial(m, *inputs) for s, m in modules.items()}
            timed = paired(calls, CpuTimer(), effort)
        shape = f"{batch}x" + "x".join(map(str, inputs[0].shape[1:]))
        common = {"device": device, "network": name, "batch": batch}
        rows += _rows({**common, "layer": WHOLE, "shape": shape}, timed)
        firsts = {one.like(batch): one for one in reversed(products)}
        with torch.no_grad():
            single = calls_of(program, list(firsts.values()), inputs, SCHEMES)
        for one, call in zip(firsts.values(), single, strict=True):
            count = sum(other.like(batch) == one.like(batch) for other in products)
            layer = {**common, "layer": one.layer.layer, "op": one.layer.op, "count": count}
            with torch.inference_mode():
                timed = paired(call, CpuTimer(), effort)
            rows += _rows({**layer, "shape": one.shape(batch)}, timed)
    return rows, coverage


def _must_agree(modules: Mapping[str, Any], inputs: Sequence[torch.Tensor]) -> None:
    """A time of something else than the same answer, unalarmed, would say nothing."""
    expected = modules[NONE](*inputs)
    for scheme in SCHEMES:
        answer, verdict = modules[scheme](*inputs)
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3)
        found = Verdict.read(verdict)
        if found.status != "clean":
            raise SystemExit(f"{scheme}: a clean run is not: {found}")


def _rows(common: Mapping[str, Any], timed: Mapping[str, Timing]) -> Rows:
    """One row per scheme. On a CPU the unprotected operators are the vendor's own."""
    base = timed[NONE]
    return [
        {
            **common,
            "scheme": scheme,
            "base_us": round(base.us, 2),
            "protected_us": round(one.us, 2),
            "vendor_us": round(base.us, 2),
            "overhead": round(one.overhead, 4),
            "overhead_quartiles": [round(one.low, 4), round(one.high, 4)],
            "cpu_overhead": None if one.cpu_overhead is None else round(one.cpu_overhead, 4),
        }
        for scheme, one in timed.items()
        if scheme != NONE
    ]


def merged(rows: Rows, coverage: Rows, run: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The whole of abft.json: these rows, and what other files in `folder` have."""
    gpu, campaign = _read(folder / GPU) or {}, _read(folder / CAMPAIGN)
    cells: Rows = [{"note": "not measured", "command": "proa abft campaign"}]
    if campaign is not None:
        cells = campaign if isinstance(campaign, list) else campaign["campaign"]
    return {
        "run": dict(run),
        "serving": _read(folder / SERVING) or {"note": "not measured", "command": SERVING_COMMAND},
        "coverage": coverage,
        "gpu": {
            key: value for key, value in gpu.items() if key not in ("rows", "campaign", "shapes")
        },
        "rows": [*rows, *gpu_rows(gpu)],
        "campaign": [*cells, *gpu_cells(gpu)],
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="separated by commas")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--repeats", type=int, default=11, help="of each paired measurement")
    parser.add_argument("--small", action="store_true", help="small inputs, to try it out")
    parser.add_argument("--merge-only", action="store_true", help="keep the CPU rows of abft.json")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are")
    args = parser.parse_args(argv)
    if args.merge_only:
        old = json.loads((args.results / "abft.json").read_text(encoding="utf-8"))
        rows = [row for row in old["rows"] if "cpu_overhead" in row]
        _write(rows, old["coverage"], old["run"], args.results)
        return 0
    for rows, coverage, run in _measured(args):  # what was measured stays if the next is cut off
        _write(rows, coverage, run, args.results)
    return 0


def _write(rows: Rows, coverage: Rows, run: Mapping[str, Any], folder: Path) -> None:
    tree = merged(rows, coverage, run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "abft.json").write_text(json_lines(tree, ("rows", "campaign")), encoding="utf-8")
    (folder / "abft.md").write_text(page(tree), encoding="utf-8")


def _measured(args: argparse.Namespace) -> Iterator[tuple[Rows, Rows, dict[str, Any]]]:
    """All so far, after each network."""
    torch.set_num_threads(1)
    device = device_of("cpu")
    run = {
        "command": "benchmarks/abft.py",
        "device": device.name,
        "torch": device.torch,
        "threads": 1,
        "repeats": args.repeats,
        "small": args.small,
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
    }
    rows: Rows = []
    coverage: Rows = []
    batches = [int(batch) for batch in args.batches.split(",")]
    effort = Effort(repeats=args.repeats)
    for name in args.networks.split(","):
        found, covers = measure(name, batches, effort, device.name, small=args.small)
        rows += found
        coverage += covers
        run["load_after"] = round(os.getloadavg()[0], 1)
        print(f"{name}: {len(found)} rows", file=sys.stderr, flush=True)
        yield rows, coverage, run


if __name__ == "__main__":
    if not MALLOC.keys() & os.environ.keys():  # glibc reads them when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    sys.exit(main())

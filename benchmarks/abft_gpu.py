"""Checked matrix products on a GPU: correctness, fault campaign, overheads, bf16xN. One call.

    python benchmarks/abft_gpu.py [--quick] [--only NETWORK] [--out FILE]   on a GPU, 10 minutes
    TRITON_INTERPRET=1 python benchmarks/abft_gpu.py --device cpu --toy     correctness, anywhere

Imports only torch, triton, numpy and proa_kernels. Results: JSON in FILE, default
$OUT/abft-gpu.json. Exit code 1 where any section failed; the others are in the file all the same.
docs/abft-gpu.md and docs/emulated.md say what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "kernels")]

import torch  # noqa: E402
import triton  # noqa: E402
from gpu_abft import correctness, layers, precision, shapes  # noqa: E402
from gpu_abft.record import Record  # noqa: E402

WARM_PROCESSES_MAX = 14
WARM_SECONDS_MAX = 200


def main() -> int:
    args = _arguments()
    out = args.out or Path(os.environ.get("OUT", "out")) / "abft-gpu.json"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    chosen = [
        layer
        for layer in shapes.networks(quick=args.quick)
        if not args.only or layer.network.startswith(args.only)
    ]
    if args.warm:
        return _warm(args, chosen)
    record = Record(out, args.seconds)
    record.section("environment", lambda: environment(args.device))
    if args.device == "cpu":
        _anywhere(record)
    else:
        _gpu(record, args, chosen)
    print(f"{out}: {len(record.found['errors'])} errors", flush=True)
    return 1 if record.found["errors"] else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: a part of everything")
    parser.add_argument("--only", help="networks whose names begin so, and nothing else")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=560.0, help="what is left out after that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="smallest sizes: the CPU interpreter")
    parser.add_argument("--warm", help=argparse.SUPPRESS)  # PART/PARTS: compile, in a child
    args = parser.parse_args()
    if (args.device == "cpu") != args.toy:
        parser.error("--device cpu and --toy go together: the interpreter measures nothing")
    if args.toy and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--toy needs TRITON_INTERPRET=1")
    return args


def environment(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    found = {
        "device": "CPU interpreter", "torch": torch.__version__, "triton": triton.__version__,
        "python": sys.version.split()[0],
    }  # fmt: skip
    if device == "cuda":
        one = torch.cuda.get_device_properties(0)
        found |= {
            "device": one.name, "capability": f"{one.major}.{one.minor}",
            "multiprocessors": one.multi_processor_count, "cuda": torch.version.cuda,
            "memory_gib": round(one.total_memory / 2**30, 1),
        }  # fmt: skip
    return found


def _anywhere(record: Record) -> None:
    """The sections that hold on any device, at the interpreter's sizes."""
    toy = correctness.TOY
    record.section("smoke", lambda: correctness.smoke("cpu", record))
    record.section("calibration", lambda: correctness.calibration("cpu", toy))
    record.section("campaign", lambda: correctness.campaign("cpu", toy))
    record.section("emulated_errors", lambda: precision.errors("cpu", 64))
    record.section("emulated_checked", lambda: precision.checked("cpu", 64))
    place = layers.Place("cpu", "CPU interpreter", torch.float16)
    record.section("networks", lambda: layers.run(shapes.toy(), record, place))


def _gpu(record: Record, args: argparse.Namespace, chosen: list[shapes.Layer]) -> None:
    place = layers.Place("cuda", torch.cuda.get_device_name(0), torch.bfloat16)
    scale = correctness.QUICK if args.quick else correctness.FULL
    record.section("warm", lambda: _compile_all(args))
    if not args.only:
        record.section("smoke", lambda: correctness.smoke("cuda", record))
        record.section("graphs", lambda: correctness.graphs())
        record.section("calibration", lambda: correctness.calibration("cuda", scale))
        record.section("campaign", lambda: correctness.campaign("cuda", scale))
        record.section("emulated_errors", lambda: precision.errors("cuda", 4096))
        record.section("emulated_special", lambda: precision.special("cuda"))
        record.section("emulated_checked", lambda: precision.checked("cuda", 2048))
        sizes = (4096,) if args.quick else (4096, 8192)
        record.section(
            "emulated_times", lambda: [precision.times(size, 9, "cuda") for size in sizes]
        )
    record.section("networks", lambda: layers.run(chosen, record, place))
    for network, found in record.found.get("networks", {}).items():
        print(network, {key: found[key] for key in found if key.endswith("percent")}, flush=True)


def _warm(args: argparse.Namespace, chosen: list[shapes.Layer]) -> int:
    """Every PARTS-th task from PART on; what fails here fails again, and is told, later."""
    part, parts = map(int, args.warm.split("/"))
    tasks = layers.warm_tasks(chosen)
    if not args.only:
        small = correctness.WARM
        for dtype in correctness.dtypes("cuda"):
            tasks.append(lambda d=dtype: correctness.calibration("cuda", small, d))
            tasks.append(lambda d=dtype: correctness.campaign("cuda", small, d))
        tasks += [
            lambda one=one: correctness.tried(one, "cuda") for one in correctness.trials("cuda")
        ]
        tasks += [lambda one=one: precision.warm(one) for one in precision.PRODUCTS]
    failed = 0
    for task in tasks[part::parts]:
        try:
            task()
        except Exception as error:  # noqa: BLE001  # the tasks after it must not be lost
            failed += 1
            print(f"warm: {error!r}"[:500], flush=True)
    return 1 if failed else 0


def _compile_all(args: argparse.Namespace) -> dict[str, Any]:
    """Kernels are compiled by several processes into Triton's cache; what they cannot, is later."""
    count = max(1, min(WARM_PROCESSES_MAX, (os.cpu_count() or 2) - 2))
    command = [sys.executable, str(Path(__file__).resolve())]
    command += ["--quick"] if args.quick else []
    command += ["--only", args.only] if args.only else []
    children = [subprocess.Popen([*command, "--warm", f"{part}/{count}"]) for part in range(count)]
    codes: list[int | None] = []
    limit = WARM_SECONDS_MAX / (4 if args.quick else 1)
    for child in children:
        try:
            codes.append(child.wait(timeout=max(1.0, limit)))
        except subprocess.TimeoutExpired:
            child.kill()
            codes.append(None)
            limit = 1.0
    return {"processes": count, "exit_codes": codes}


if __name__ == "__main__":
    sys.exit(main())

"""Checked matrix products on a GPU: correctness, fault campaign, overheads, bf16xN. One call.

    python benchmarks/abft_gpu.py [--quick] [--out FILE]                on a GPU, 10 minutes
    python benchmarks/abft_gpu.py --only 'VGG-16' [--into FILE]         networks by name or pattern
    TRITON_INTERPRET=1 python benchmarks/abft_gpu.py --device cpu --toy correctness, anywhere

Imports only torch, triton, numpy and proa_kernels. Results: JSON in FILE, default
$OUT/abft-gpu.json. With --only they are put into earlier ones. Exit code 1 where any section
failed; the others are in the file all the same. docs/abft-gpu.md says what is measured and how.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "kernels")]

import torch  # noqa: E402
from gpu_abft import children, sections, shapes  # noqa: E402
from gpu_abft.record import Lost, Record  # noqa: E402

WARM_PROCESSES_MAX = 14
WARM_SECONDS_MAX = 200
RESULTS = _HERE.parent / "docs" / "results" / "abft-gpu.json"


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    listed = shapes.toy() if args.toy else shapes.networks(quick=args.quick)
    chosen = [layer for layer in listed if fnmatchcase(layer.network, args.only or "*")]
    run = sections.Run(args.device, args.quick, listed, chosen)
    if args.warm:
        part, parts = map(int, args.warm.split("/"))
        return 1 if sections.warm(run, not args.only, part, parts) else 0
    record = Record(args.out, args.end or time.monotonic() + args.seconds, run=args.run)
    if args.sections:
        return _child(args, run, record)
    if not chosen:
        names = ", ".join(dict.fromkeys(layer.network for layer in listed))
        raise SystemExit(f"--only {args.only}: no such network; there are {names}")
    _begin(args, run, record)
    if args.device == "cpu":
        for name in sections.ANYWHERE:
            sections.section(name, run, record)
    else:
        _gpu(args, record)
    sections.add_up(run, record)
    record.close()
    for network, found in record.found["networks"].items():
        print(network, {key: found[key] for key in found if key.endswith("percent")}, flush=True)
    print(f"{args.out}: {len(record.found['errors'])} errors", flush=True)
    return 1 if record.found["errors"] else 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="two minutes: a part of everything")
    parser.add_argument("--only", help="one network, or a pattern such as '*decode*'; nothing else")
    parser.add_argument(
        "--into", type=Path, help="earlier results, to which those of --only are added; default:"
        f" FILE, else {RESULTS.name} in docs/results",
    )  # fmt: skip
    out = Path(os.environ.get("OUT", "out")) / "abft-gpu.json"
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--seconds", type=float, default=550.0, help="what is left out after that")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="smallest sizes: the CPU interpreter")
    for name in ("--warm", "--sections"):  # PART/PARTS; names: in a process of its own
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--run", default=str(time.time_ns()), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if (args.device == "cpu") != args.toy:
        parser.error("--device cpu and --toy go together: the interpreter measures nothing")
    if args.toy and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--toy needs TRITON_INTERPRET=1")
    if args.into and not args.only:
        parser.error("--into goes with --only: a whole run has nothing to be added to")
    return args


def _begin(args: argparse.Namespace, run: sections.Run, record: Record) -> None:
    """An empty record; with --only the earlier one, less its errors about what is measured now."""
    here = sections.environment(args.device)
    if args.only:
        earlier = [path for path in (args.into, args.out, RESULTS) if path and path.is_file()]
        if args.into and not args.into.is_file():
            raise SystemExit(f"--into {args.into}: no such file")
        if earlier:
            record.load(earlier[0])
            there = record.found.get("environment", {})
            if any(there.get(key) != here[key] for key in ("device", "torch", "triton")):
                raise SystemExit(f"{earlier[0]} is of {there}, not of {here}: see --into, --out")
            print(f"added to {earlier[0]}", flush=True)
    names = tuple(f"{layer.network} " for layer in run.chosen)
    record.found["errors"] = [
        one for one in record.found["errors"]
        if not one["where"].startswith(names) and one.get("section") != "warm"
    ]  # fmt: skip
    for name in ("warm", "networks", "rest"):
        record.found.get("seconds", {}).pop(name, None)
    record.found["environment"] = here


def _gpu(args: argparse.Namespace, record: Record) -> None:
    record.section("warm", partial(_compile_all, args, record))
    names = ["networks", "rest"] if args.only else list(sections.ORDER)

    def start(left: Sequence[str]) -> subprocess.Popen[bytes]:
        end = str(time.monotonic() + record.left_s)
        return subprocess.Popen([
            *_command(args), "--out", str(args.out), "--sections", ",".join(left), "--end", end,
            "--run", args.run,
        ])  # fmt: skip

    children.supervise(names, start, record)


def _child(args: argparse.Namespace, run: sections.Run, record: Record) -> int:
    """Sections, one after another, in this process."""
    record.load()
    record.alive = _alive
    try:
        for name in args.sections.split(","):
            sections.section(name, run, record)
    except Lost:
        return children.LOST
    return 0


def _alive() -> bool:
    try:
        torch.cuda.synchronize()
    except Exception:  # noqa: BLE001  # of several kinds: it says all that is asked
        return False
    return True


def _command(args: argparse.Namespace) -> list[str]:
    found = [sys.executable, str(Path(__file__).resolve())]
    found += ["--quick"] if args.quick else []
    return [*found, "--only", args.only] if args.only else found


def _compile_all(args: argparse.Namespace, record: Record) -> dict[str, object]:
    """Kernels are compiled by several processes into Triton's cache; what they cannot, is later."""
    count = max(1, min(WARM_PROCESSES_MAX, (os.cpu_count() or 2) - 2))
    limit = WARM_SECONDS_MAX / (4 if args.quick else 1)
    commands = [[*_command(args), "--warm", f"{part}/{count}"] for part in range(count)]
    return {"processes": count, "exit_codes": children.together(commands, limit, record)}


if __name__ == "__main__":
    sys.exit(main())

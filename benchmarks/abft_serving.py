"""Real tritonserver workers whose products are hit by bit flips: is an answer ever wrong unsaid?

An MLP of the size of DLRM's bottom MLP (13-512-256-64, fp32) is served with `protection: correct`
by two workers, without quarantine. One bit of one accumulator flips at a share of the requests.
Each answer is compared, bit for bit, with the clean one computed offline by the same program. One
that differs and is not marked `repaired` may do so by no more than the layers' thresholds allow;
all such answers are listed. Exit code 1 where one differs by more, or a request failed; else 3
where a repaired answer's p99 is surely beyond twice the clean one, whatever chance there is in so
few of them: that is a matter of the machine too, so no test fails by it.

    .venv/bin/python benchmarks/abft_serving.py --out docs/results/abft-serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tritonclient.grpc.aio as triton
import yaml
from numpy.typing import NDArray

from proa.api.v1 import faults_pb2
from proa.client import AsyncClient
from proa.errors import ProaError
from proa.load import quantile
from proa.local.embedded import Running, embedded
from proa.local.topology import Options
from proa.worker import programs

Floats = NDArray[np.float64]
NAME, SIZES = "mlp", (13, 512, 256, 64)
WORKERS, CLIENTS, QUERIES = 2, 2, 256
CHUNK = 1000  # requests until other dice are thrown; well within a fault's time to live
TTL_MS = 600_000
TILE = 128
WRONG, SLOW = 1, 3  # exit codes; 2 is argparse's
P99_RATIO_MAX = 2.0


class Mlp(torch.nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(k, n) for k, n in pairwise(SIZES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        last: torch.Tensor = self.layers[-1](x)
        return last


def write_spec(folder: Path) -> Path:
    """The model's program and its spec."""
    example = (torch.zeros(2, SIZES[0]),)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Mlp().eval(), example, dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "mlp.pt2")
    spec = {
        "model": {
            "program": "mlp.pt2",
            "maxBatch": 8,
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [SIZES[0]]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [SIZES[-1]]}],
        },
        "redundancy": {"policy": "retry", "placement": "pod"},
        "protection": {"mode": "correct", "quarantinePercentMax": 0},
    }
    head = {"apiVersion": "proa.dev/v1alpha1", "kind": "CodedModel", "metadata": {"name": NAME}}
    path = folder / "mlp.yaml"
    path.write_text(yaml.safe_dump({**head, "spec": spec}), encoding="utf-8")
    return path


# --- what a flip may do without being found


@functools.cache
def _layers() -> list[tuple[Floats, Floats, Floats]]:
    """Of each layer its weight `[N, K]`, its bias, and how far an error of each of its outputs
    reaches: the absolute weights after it, multiplied, `[last N, N]`."""
    found: list[tuple[Floats, Floats, Floats]] = []
    reach = np.eye(SIZES[-1])
    for layer in reversed(Mlp().requires_grad_(False).layers):
        weight = layer.weight.double().numpy()
        found.insert(0, (weight, layer.bias.double().numpy(), reach))
        reach = reach @ np.abs(weight)
    return found


def allowance(x: Floats) -> Floats:
    """By how much each output for `x` `[K]` may differ where one accumulator is off and its check
    found nothing: the worst layer. `[N]`.

    The residual was within the limit before and is so with the error, which is hence at most twice
    the limit. What follows is linear or ReLU: an error grows by the absolute weights at most, and
    each later layer, which rounds anew, adds no more than its own limit.
    """
    worst = later = np.zeros(SIZES[-1])
    limits = []
    for weight, bias, _ in _layers():
        limits.append(_limit(x, weight))
        x = np.maximum(weight @ x + bias, 0.0)  # the last one's is not used
    for limit, (_, _, reach) in zip(reversed(limits), reversed(_layers()), strict=True):
        worst = np.maximum(worst, 2.0 * limit * reach.max(axis=1) + later)
        later = later + limit * reach.sum(axis=1)
    return worst


def _limit(x: Floats, weight: Floats) -> float:
    """The largest limit of the first checksum over the tiles of `weight` `[N, K]`."""
    inner = len(x)
    noise = 2.0**-24 * (2.0 * math.sqrt(inner) + 6.0)
    size = np.linalg.norm(x)
    found = []
    for start in range(0, len(weight), TILE):
        tile = weight[start : start + TILE]
        check = tile.sum(axis=0)
        product = max(np.linalg.norm(tile @ x), size * np.linalg.norm(tile) / math.sqrt(inner))
        checked = max(abs(x @ check), size * np.linalg.norm(check) / math.sqrt(inner))
        found.append(noise * (2.0 * product + checked))
    return float(max(found))


# --- the run


@dataclass
class Seen:
    """What became of the requests."""

    counts: Counter[str] = field(default_factory=Counter)
    latency_s: dict[str, list[float]] = field(default_factory=lambda: {"clean": [], "repaired": []})
    undetected: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Trial:
    """Asks the frontend of `running`, compares, and notes it in `seen`."""

    def __init__(self, running: Running, folder: Path) -> None:
        self._running = running
        file = folder / "packages" / NAME / NAME / "1" / "deployed.pt2"
        program = programs.load(file, None)
        self._queries = np.random.default_rng(0).standard_normal((QUERIES, 1, SIZES[0]))
        self._queries = self._queries.astype(np.float32)
        torch.set_num_threads(1)  # as a worker has
        self._clean = [program(torch.from_numpy(q))[0].numpy() for q in self._queries]
        self._allowed = [allowance(q[0].astype(np.float64)) for q in self._queries]
        sigma = float(np.std(np.concatenate(self._clean)))
        self.allowed_of_sigma = float(np.max(self._allowed)) / sigma
        self.seen = Seen()

    async def run(self, requests: int, rate: float, seed: int) -> None:
        """So many requests, a few at a time, while bits flip at a share `rate` of them."""
        async with AsyncClient(
            self._running.topology.address, deadline_s=30.0, retry=False
        ) as client:
            for i in range(50):  # warm
                await client.infer(NAME, self._queries[i])
            for start in range(0, requests, CHUNK):
                await self._flip(rate, seed + start)
                left = iter(range(start, min(start + CHUNK, requests)))

                async def ask(left: Any = left) -> None:
                    for index in left:
                        await self._ask(client, index)

                await asyncio.gather(*(ask() for _ in range(CLIENTS)))
        await self._flip(0.0, 0)

    async def _ask(self, client: AsyncClient, index: int) -> None:
        seen, which = self.seen, index % QUERIES
        began = time.perf_counter()
        try:
            answer = await client.infer(NAME, self._queries[which])
        except ProaError as exc:
            seen.counts["failed"] += 1
            seen.errors.append(f"{type(exc).__name__}: {exc}"[:200])
            return
        took_s = time.perf_counter() - began
        seen.counts[f"source {answer.source}"] += 1
        marked = answer.abft == "repaired"
        seen.counts["unchecked"] += answer.abft is None
        off = np.abs(answer["y"][0].astype(np.float64) - self._clean[which][0])
        same = bool(np.array_equal(answer["y"], self._clean[which]))
        seen.counts[("repaired" if marked else "clean") + ("" if same else " and different")] += 1
        seen.latency_s["repaired" if marked else "clean"].append(took_s)
        if not (same or marked):
            ratio = float(np.nan_to_num(off / self._allowed[which], nan=np.inf).max())
            seen.undetected.append(
                {"request": index, "off_by": float(off.max()), "of_allowed": round(ratio, 6)}
            )

    async def _flip(self, rate: float, seed: int) -> None:
        """One bit of one accumulator at a share `rate` of each worker's requests; 0: none."""
        for process in self._running.topology.processes:
            if not process.name.startswith("worker-"):
                continue
            request = faults_pb2.FaultRequest(clear=faults_pb2.ClearRequest())
            if rate:
                fault = faults_pb2.Fault(
                    id="flip", kind=faults_pb2.BITFLIP, site=faults_pb2.ACTIVATION, bits=1,
                    probability=rate, ttl_ms=TTL_MS, seed=seed + int(process.name[7:]),
                )  # fmt: skip
                request = faults_pb2.FaultRequest(inject=faults_pb2.InjectRequest(fault=fault))
            data = np.frombuffer(request.SerializeToString(), np.uint8)
            tensor = triton.InferInput("request", list(data.shape), "UINT8")
            tensor.set_data_from_numpy(data)
            async with triton.InferenceServerClient(f"127.0.0.1:{process.port}") as client:
                await client.infer("proa_faults", [tensor])


async def measure(requests: int, rate: float, seed: int) -> dict[str, Any]:
    """The report."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = Options(
            run_dir=folder / "run", port=0, admin_port=0, workers=WORKERS, faults=True
        )
        async with embedded([write_spec(folder)], options) as running:
            await running.supervisor.ready()
            trial = Trial(running, folder / "run")
            await trial.run(requests, rate, seed)
    return {
        **_report(trial.seen, requests, rate, seed),
        "allowed_of_sigma": round(trial.allowed_of_sigma, 6),
        "load_before": round(load, 1),
    }


def _report(seen: Seen, requests: int, rate: float, seed: int) -> dict[str, Any]:
    milliseconds = {
        f"{kind}_{name}_ms": round(1e3 * quantile(values, share), 3) if values else None
        for kind, values in seen.latency_s.items()
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    clean, repaired = milliseconds["clean_p99_ms"], milliseconds["repaired_p99_ms"]
    least_s = p99_least(seen.latency_s["repaired"])
    return {
        "command": f"benchmarks/abft_serving.py --requests {requests} --rate {rate} --seed {seed}",
        "model": f"MLP {'-'.join(map(str, SIZES))}, fp32, batch 1, {WORKERS} workers",
        "requests": requests,
        "flips_expected": round(requests * rate),
        "answers": dict(sorted(seen.counts.items())),
        "errors": sorted(set(seen.errors))[:10],
        "undetected": seen.undetected,
        "undetected_beyond_allowed": sum(one["of_allowed"] > 1.0 for one in seen.undetected),
        **milliseconds,
        "p99_ratio": round(repaired / clean, 2) if clean and repaired else None,
        "p99_ratio_least": round(1e3 * least_s / clean, 2) if clean and least_s else None,
        "repaired_samples": len(seen.latency_s["repaired"]),
    }


def p99_least(values: Sequence[float]) -> float | None:
    """What the 99th percentile is at least, with 95 % confidence: the largest of the values that so
    many lie above of as chance allows. None without values."""
    if not values:
        return None
    above, likely = 0, 0.0
    while above < len(values):
        likely += math.comb(len(values), above) * 0.01**above * 0.99 ** (len(values) - above)
        if likely >= 0.95:
            break
        above += 1
    return sorted(values)[max(0, len(values) - 1 - above)]


def exit_code(report: Mapping[str, Any]) -> int:
    if report["undetected_beyond_allowed"] or report["answers"].get("failed", 0):
        return WRONG
    least = report["p99_ratio_least"]
    return SLOW if least is not None and least > P99_RATIO_MAX else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=0.01, help="share of the requests hit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the JSON file; else it is printed")
    args = parser.parse_args()
    report = asyncio.run(measure(args.requests, args.rate, args.seed))
    text = json.dumps(report, indent=1) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    return exit_code(report)


if __name__ == "__main__":
    sys.exit(main())

"""What the frontend costs: the same query straight to a Triton worker and through the frontend.
And what a worker adds to a computation, with one query there at a time and with one that waits.

Paired: each two take turns in one run, so that a slow machine slows both. Prints JSON.

    .venv/bin/python benchmarks/overhead.py out/demo/digits.yaml
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc.aio import InferenceServerClient as Client

from proa import spec as specs
from proa.local.embedded import embedded
from proa.local.topology import Options
from proa.spec import CodedModel

ROUNDS, WARM_UP = 2000, 200
WORKERS = 3
SERVICE_MS = 20.0
TURNS, QUERIES = 8, 60


def query_for(spec: CodedModel) -> triton.InferInput:
    """A query of random numbers."""
    tensor = spec.model.inputs[0]
    data = np.random.default_rng(0).random((1, *tensor.shape), dtype=np.float32)
    query = triton.InferInput(tensor.name, data.shape, tensor.dtype)
    query.set_data_from_numpy(data)
    return query


@asynccontextmanager
async def clients(path: Path, **options: Any) -> AsyncIterator[tuple[Client, Client]]:
    """Of a worker and of the frontend, while both run."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = Options(run_dir=Path(folder), port=0, admin_port=0, **options)
        async with embedded([path], chosen) as running:
            await running.supervisor.ready()
            worker = next(p for p in running.topology.processes if p.name == "worker-0")
            async with (
                Client(f"127.0.0.1:{worker.port}") as direct,
                Client(running.topology.address) as frontend,
            ):
                yield direct, frontend


async def measure(path: Path) -> dict[str, float]:
    """Median latencies in ms, and their difference and ratio."""
    spec = specs.load(path)
    query = query_for(spec)
    took: dict[str, list[float]] = {"direct": [], "frontend": []}
    async with clients(path, workers=WORKERS) as (direct, frontend):
        for _ in range(ROUNDS):
            for name, client in (("direct", direct), ("frontend", frontend)):
                started = time.perf_counter()
                await client.infer(spec.name, [query])
                took[name].append(1e3 * (time.perf_counter() - started))
    medians = {name: float(np.median(values[WARM_UP:])) for name, values in took.items()}
    return {
        "direct_p50_ms": round(medians["direct"], 3),
        "frontend_p50_ms": round(medians["frontend"], 3),
        "added_ms": round(medians["frontend"] - medians["direct"], 3),
        "ratio": round(medians["frontend"] / medians["direct"], 2),
        "rounds": ROUNDS - WARM_UP,
    }


async def measure_turns(path: Path) -> dict[str, float]:
    """Medians of how long a worker takes for each query beyond its computation, in ms: with one
    query there at a time (`alone`), and with one that waits for the one before (`queued`)."""
    spec = specs.load(path)
    query = query_for(spec)
    took: dict[int, list[float]] = {1: [], 2: []}
    async with clients(path, workers=1, service_ms=SERVICE_MS) as (worker, _):

        async def ask(count: int) -> None:
            for _ in range(count):
                await worker.infer(spec.name, [query])

        for _ in range(TURNS):
            for at_once, values in took.items():
                started = time.perf_counter()
                await asyncio.gather(*(ask(QUERIES // at_once) for _ in range(at_once)))
                values.append(1e3 * (time.perf_counter() - started) / QUERIES - SERVICE_MS)
    return {
        "worker_alone_ms": round(float(np.median(took[1])), 3),
        "worker_queued_ms": round(float(np.median(took[2])), 3),
    }


if __name__ == "__main__":
    spec_file = Path(sys.argv[1])
    print(json.dumps(asyncio.run(measure(spec_file)) | asyncio.run(measure_turns(spec_file))))

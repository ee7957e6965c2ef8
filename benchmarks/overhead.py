"""What the frontend costs: the same query straight to a Triton worker and through the frontend.

Paired: the two take turns in one run, so that a slow machine slows both. Prints JSON.

    .venv/bin/python benchmarks/overhead.py out/demo/digits.yaml
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as triton

from proa import spec as specs
from proa.local.embedded import embedded
from proa.local.topology import Options

ROUNDS, WARM_UP = 2000, 200
WORKERS = 3


async def measure(path: Path) -> dict[str, float]:
    """Median latencies in ms, and their difference and ratio."""
    spec = specs.load(path)
    tensor = spec.model.inputs[0]
    data = np.random.default_rng(0).random((1, *tensor.shape), dtype=np.float32)
    query = triton.InferInput(tensor.name, data.shape, tensor.dtype)
    query.set_data_from_numpy(data)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(run_dir=Path(folder), port=0, admin_port=0, workers=WORKERS)
        async with embedded([path], options) as running:
            await running.supervisor.ready()
            worker = next(p for p in running.topology.processes if p.name == "worker-0")
            async with (
                triton.InferenceServerClient(f"127.0.0.1:{worker.port}") as direct,
                triton.InferenceServerClient(running.topology.address) as frontend,
            ):
                took: dict[str, list[float]] = {"direct": [], "frontend": []}
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


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Path(sys.argv[1])))))

"""The training-free code `mean`: the deployed model itself answers the mean of the group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.cluster import cluster
from fakes.triton_fake import images, linear
from proa.client import AsyncClient


async def test_mean_reconstructs_what_a_stuck_worker_owes(tmp_path: Path) -> None:
    redundancy = (
        "policy: parity, coder: mean, patience: first, groupMsMax: 1, idleReserve: 0,"
        " qualitySample: 0"
    )
    async with (
        cluster(tmp_path, redundancy, service_s=0.002) as found,
        AsyncClient(found.address, deadline_s=5.0) as client,
    ):
        queries = images(12, seed=3)
        for query in queries:  # answered queries fill partial groups
            await client.infer("digits", query)
        sources = set()
        for worker in found.workers:
            worker.pause()
            for query in queries:
                answer = await client.infer("digits", query)
                # k * F(mean) - F(other) is exact for a linear model, up to fp32.
                np.testing.assert_allclose(answer["logits"], linear(query), rtol=1e-2, atol=1e-2)
                sources.add(answer.source)
            worker.resume()
            if "reconstructed" in sources:
                break
        assert "reconstructed" in sources

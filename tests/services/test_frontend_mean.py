"""The training-free code `mean`: the deployed model itself answers the mean of the group."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fakes.cluster import cluster, one_of_two_missing
from fakes.triton_fake import FakeTriton, images, linear
from proa import wire

MEAN = (
    "policy: parity, coder: mean, patience: first, groupMsMax: 60000, idleReserve: 0,"
    " qualitySample: 0"
)


async def test_mean_reconstructs_what_a_stuck_worker_owes(tmp_path: Path) -> None:
    fakes = [FakeTriton(code="mean:2:1") for _ in range(3)]
    async with cluster(tmp_path, MEAN, fakes=fakes) as served:
        call, stuck = await one_of_two_missing(served)
        response = await call
        assert response.parameters["proa.source"].string_param == "reconstructed"
        # k * F(mean) - F(other) is exact for a linear model, up to fp32.
        found = wire.read_response(response)["logits"]
        np.testing.assert_allclose(found, linear(images(2, seed=9)[0]), rtol=1e-3, atol=1e-3)
        stuck.resume()

"""A worker's turn to restart Triton is a Lease in the Kubernetes API."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.kube_fake import fake_kube, kubeconfig
from proa.errors import EnvironmentLacks
from proa.worker.renewal import lease_turn


async def test_the_turn_is_a_lease(tmp_path: Path) -> None:
    async with fake_kube() as kube:
        kubeconfig(tmp_path, str(kube.url))
        environ = {"KUBECONFIG": str(tmp_path / "kubeconfig")}
        turn = lease_turn("proa-restart", environ, "worker-0")
        async with turn():
            assert kube.objects["leases", "proa-restart"]["spec"]["holderIdentity"] == "worker-0"
        assert not kube.objects["leases", "proa-restart"]["spec"].get("holderIdentity")


def test_without_an_api_the_start_says_so() -> None:
    with pytest.raises(EnvironmentLacks, match="no way to the Kubernetes API"):
        lease_turn("proa-restart", {}, "worker-0")

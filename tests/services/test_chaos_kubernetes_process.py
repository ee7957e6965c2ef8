"""`proa-service chaos` as a process, and the runner's keys to doors that are locked."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from fakes.cluster import frontend, write_spec
from fakes.eventually import eventually
from fakes.kube_fake import NAMESPACE
from fakes.locked import Locks, encoder
from fakes.pki import Authority, secret
from fakes.release import Release, release
from proa.client import Unauthenticated
from proa.errors import Unavailable
from proa_chaos.inband import InBand
from proa_chaos.kubernetes.doors import Doors, client_tls
from proa_chaos.selection import ROLE, Target

EXPERIMENT = """\
apiVersion: proa.dev/v1alpha1
kind: ChaosExperiment
metadata: {{name: one}}
spec:
  title: t
  description: d
  workload: {{rateHz: 40, phases: {{before: 500ms, during: {during}, after: 500ms}}}}
  faults:
    - name: slow
      action: slow
      selector: {{labelSelectors: {{proa.dev/role: decoder}}}}
      parameters: {{delay: 10ms}}
  hypothesis: [{{phase: all, measure: {measure}, atMost: 0}}]
"""


async def start(
    there: Release, folder: Path, *, during: str = "1s", measure: str = "failed", **env: str
) -> asyncio.subprocess.Process:
    path = folder / "one.yaml"
    path.write_text(EXPERIMENT.format(during=during, measure=measure))
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PROA_")}
    given = {
        "KUBECONFIG": str(folder / "kubeconfig"),
        "PROA_CHAOS_FILE": str(path),
        "PROA_CHAOS_INSTANCE": "r",
        "PROA_CHAOS_ADDRESS": there.served.address,
        "PROA_CHAOS_NAMESPACE": NAMESPACE,
        "PROA_CHAOS_OUT": str(folder / "out"),
        "PROA_CHAOS_JOB": "one",
        **env,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proa.entry", "chaos",
        env={**clean, **given},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_the_exit_code_is_the_verdict_and_stdout_the_journal(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        for measure, code, verdict in (("failed", 0, "Pass"), ("sent", 1, "Fail")):
            process = await start(there, tmp_path, measure=measure)
            out, said = await process.communicate()
            assert process.returncode == code, said.decode()
            found = json.loads(out)
            assert found["chaosresult"]["experimentStatus"]["verdict"] == verdict
            assert found["proa"]["backend"] == "kubernetes"
            assert json.loads((tmp_path / "out" / "journal.json").read_text()) == found
            assert (tmp_path / "out" / "report.html").exists()
            assert "phase     during" in said.decode()


async def test_sigterm_rolls_back_and_says_stopped(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        process = await start(there, tmp_path, during="60s")
        assert process.stderr is not None
        async for line in process.stderr:
            if b"slow decoder" in line:
                break
        process.send_signal(signal.SIGTERM)
        out, _ = await process.communicate()
        assert process.returncode == 1
        assert json.loads(out)["chaosresult"]["experimentStatus"]["verdict"] == "Stopped"
        assert json.loads(out)["rollbacks"][0]["status"] == "succeeded"
        await eventually(lambda: there.notes().get("proa.dev/chaos-verdict") == "Stopped")


async def test_wrong_settings_and_files_exit_with_2(tmp_path: Path) -> None:
    async with release(tmp_path) as there:
        for env, word in (
            ({"PROA_CHAOS_SEDE": "1"}, "did you mean PROA_CHAOS_SEED"),
            ({"PROA_CHAOS_FILE": str(tmp_path / "none.yaml")}, "none.yaml"),
            ({"PROA_CHAOS_TOKEN_FILE": str(tmp_path / "none")}, "PROA_CHAOS_TOKEN_FILE"),
            ({"PROA_CHAOS_MODEL": "other"}, "model 'other' is not served"),
        ):
            process = await start(there, tmp_path, **env)
            out, said = await process.communicate()
            assert (process.returncode, out) == (2, b"")
            assert word in said.decode()


async def test_a_frontend_with_tls_and_tokens_lets_the_runner_in(tmp_path: Path) -> None:
    public = Authority("public CA")
    server = secret(tmp_path / "server", public.issue("demo-proa-frontend"))
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "ca.crt").write_bytes(public.certificate)
    digest = hashlib.sha256(b"secret").hexdigest()
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens:\n- name: chaos\n  sha256: {digest}\n  faults: true\n")
    async with frontend(
        specs=str(write_spec(tmp_path)),
        workers="digits=127.0.0.1:1",
        client_tls_dir=server,
        tokens=tokens,
        faults=True,
    ) as served:
        # The pod's address is none that the certificate is for: the Service's name is.
        tls = client_tls(tmp_path / "client", "demo-proa-frontend:8001")
        doors = Doors(None, tls, "secret")
        (model,) = (await doors.report(served.address)).models
        assert model.name == "digits"
        await doors.close()
        for other, token, error in ((tls, None, Unauthenticated), (None, "secret", Unavailable)):
            doors = Doors(None, other, token)
            with pytest.raises(error):
                await doors.report(served.address)
            await doors.close()


async def test_services_with_mutual_tls_let_the_runner_in(tmp_path: Path) -> None:
    locks = Locks(tmp_path)
    async with encoder(locks.folders["encoder"]) as (address, _):
        target = Target("encoder-x", "n1", address, labels={ROLE: "encoder"})
        doors = Doors(locks.folders["frontend"], None, None)
        assert await InBand(doors, "x", 0).active(target) == []
        await doors.close()
        doors = Doors(None, None, None)
        with pytest.raises(Unavailable):
            await InBand(doors, "x", 0).active(target)
        await doors.close()

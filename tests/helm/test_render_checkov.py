"""checkov has nothing to say about any profile, but for what stands here with its reason."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from helm.chart import PROFILES, ROOT, documents, profile

CHECKOV = ROOT / ".venv" / "checkov" / "bin" / "checkov"
EVERYWHERE = ("",)
# Check -> (resources it may fail for, by the beginning of their names; why).
ACCEPTED = {
    "CKV_K8S_11": (
        EVERYWHERE,
        "a CPU limit throttles, and throttling makes the stragglers we hide",
    ),
    "CKV_K8S_15": (EVERYWHERE, "image.pullPolicy: nodes keep images, and tags are not moved"),
    "CKV_K8S_43": (EVERYWHERE, "image.*.digest: only who pushed an image knows its digest"),
    "CKV_K8S_38": (
        (
            "Deployment.prod.demo-proa-frontend",
            "Deployment.prod.demo-proa-worker-",
            "Deployment.prod.demo-proa-coordinator",
        ),
        "frontends watch EndpointSlices; workers with tls and coordinators take turns by a Lease",
    ),
    "CKV_K8S_8": (("Pod.prod.demo-proa-test-",), "a test ends by itself"),
    "CKV_K8S_9": (("Pod.prod.demo-proa-test-",), "nothing is sent to a test"),
}


def findings(folder: Path) -> dict[str, Any]:
    command = [CHECKOV, "-d", folder, "--framework", "kubernetes", "--skip-download", "--compact"]
    done = subprocess.run(
        [*map(str, command), "--quiet", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=folder,
    )
    assert done.stdout.startswith("{"), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_checkov(tmp_path: Path) -> None:
    for name in PROFILES:
        text = yaml.safe_dump_all(documents(profile(name)))
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    found = findings(tmp_path)
    assert found["summary"]["parsing_errors"] == 0
    assert found["summary"]["passed"] > 1000
    failed = {
        (f["check_id"], f["resource"], f["check_name"]) for f in found["results"]["failed_checks"]
    }
    unexplained = [
        entry
        for entry in sorted(failed)
        if not entry[1].startswith(ACCEPTED.get(entry[0], ((),))[0])
    ]
    assert unexplained == []
    assert {check for check, _, _ in failed} == set(ACCEPTED), "an accepted check fails no longer"

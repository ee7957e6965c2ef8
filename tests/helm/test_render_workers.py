"""Worker pools: sources of models, CPU, GPU and MIG, dedicated parity, updates, spreading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.programs import INPUT, OUTPUT, linear_model
from helm.chart import Document, Values, documents, of_kind, one, over, problems, profile
from proa.cli.main import build_parser, main
from proa.entry import SERVICES
from proa.spec import load

SHA = "0" * 64
SPEC: Values = {
    "model": {
        "program": "m.pt2",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
    }
}


def with_model(**keys: Any) -> Values:
    model = {"name": "m", "spec": SPEC, "source": {"builtin": "digits"}, **keys}
    return over(profile("default"), {"models": [model]})


def pool(values: Values, name: str = "demo-proa-worker-m") -> Document:
    found = documents(values)
    assert [problem for d in found for problem in problems(d)] == []
    return one(found, "Deployment", name)


def pod(values: Values, name: str = "demo-proa-worker-m") -> Document:
    spec: Document = pool(values, name)["spec"]["template"]["spec"]
    return spec


def init(values: Values) -> dict[str, Document]:
    return {c["name"]: c for c in pod(values)["initContainers"]}


def pack_of(values: Values) -> list[str]:
    command: list[str] = init(values)["pack"]["command"]
    return command


def test_builtin_needs_no_files() -> None:
    values = with_model(source={"builtin": "digits"})
    assert list(init(values)) == ["pack"]
    assert pack_of(values) == [
        "proa", "pack", "/etc/proa/models/m.yaml", "--files", "/opt/proa/models/digits",
        "--out", "/repository",
    ]  # fmt: skip


@pytest.mark.parametrize("keys", [{}, {"faults": True}, {"workers": {"mode": "gpu"}}])
def test_proa_takes_the_commands(keys: Values) -> None:
    """Both command lines of a worker pod are parsed by proa's own parsers."""
    found = pod(over(with_model(**keys), {"chaos": {"enabled": True}}))
    command = next(c["command"] for c in found["initContainers"] if c["name"] == "pack")
    chosen = build_parser().parse_args(command[1:])
    assert (str(chosen.out), chosen.faults) == ("/repository", "faults" in keys)
    assert found["containers"][0]["args"][0] in SERVICES


def test_the_pack_container_packs(tmp_path: Path) -> None:
    """What it runs, with the volumes as folders: a repository that Triton can load."""
    linear_model(tmp_path / "files")
    inputs, outputs = (
        [{"name": tensor.name, "dtype": tensor.dtype, "shape": [*tensor.shape]}]
        for tensor in (INPUT, OUTPUT)
    )
    spec = {
        "model": {
            "program": "deployed.pt2",
            "maxBatch": 4,
            "inputs": inputs,
            "outputs": outputs,
        },
        "redundancy": {"policy": "parity", "parity": {"2": ["parity.pt2"]}},
    }
    values = with_model(spec=spec, source={"pvc": {"claimName": "c"}})
    text = one(documents(values), "ConfigMap", "demo-proa-models")["data"]["m.yaml"]
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "m.yaml").write_text(text, encoding="utf-8")
    folders = {"/etc/proa/models": "specs", "/models/m": "files", "/repository": "repository"}
    command = pack_of(values)[1:]
    for mounted, folder in folders.items():
        command = [part.replace(mounted, str(tmp_path / folder)) for part in command]
    assert main(command) == 0
    assert (tmp_path / "repository" / "m" / "config.pbtxt").is_file()
    assert {f.name for f in (tmp_path / "repository" / "m" / "1").glob("*.pt2")} == {
        "deployed.pt2",
        "parity.0.pt2",
    }


def test_an_image_is_copied_from() -> None:
    values = with_model(source={"image": {"ref": "registry.example/m:1", "path": "/data/"}})
    copy = init(values)["copy"]
    assert copy["image"] == "registry.example/m:1"
    assert copy["command"] == ["cp", "-R", "/data/.", "/models/m"]
    assert "/models/m" in pack_of(values)


def test_a_volume_is_mounted_read_only() -> None:
    values = with_model(source={"pvc": {"claimName": "c", "path": "/a/b"}})
    assert list(init(values)) == ["pack"]
    mounts = {m["name"]: m for m in init(values)["pack"]["volumeMounts"]}
    assert mounts["files"]["subPath"] == "a/b"
    assert mounts["files"]["readOnly"] is True
    volumes = {v["name"]: v for v in pod(values)["volumes"]}
    assert volumes["files"]["persistentVolumeClaim"] == {"claimName": "c", "readOnly": True}


@pytest.mark.parametrize(
    "source",
    [
        {"http": {"url": "https://models.example/m.zip", "sha256": SHA}},
        {"s3": {"url": "s3://b/m.tar", "sha256": SHA, "existingSecret": "keys"}},
    ],
)
def test_archives_are_fetched_with_their_hash(source: Values) -> None:
    values = with_model(source=source)
    fetch = init(values)["fetch"]
    env = {entry["name"]: entry for entry in fetch["env"]}
    assert fetch["args"] == ["fetch"]
    assert env["PROA_FETCH_SHA256"]["value"] == SHA
    assert env["PROA_FETCH_OUT"]["value"] == "/models/m"
    if "s3" in source:
        reference = env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "keys", "key": "AWS_SECRET_ACCESS_KEY", "optional": False}
        assert env["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True


def test_a_spec_arrives_as_it_was_written(tmp_path: Path) -> None:
    """The file in the ConfigMap is read by proa's own loader, large numbers included."""
    spec = over(SPEC, {"slo": {"defaultDeadlineMs": 3_600_000}, "redundancy": {"policy": "hedge"}})
    found = documents(with_model(name="123", spec=spec))
    text = one(found, "ConfigMap", "demo-proa-models")["data"]["123.yaml"]
    assert yaml.safe_load(text)["spec"] == spec
    file = tmp_path / "123.yaml"
    file.write_text(text, encoding="utf-8")
    model = load(file)
    assert (model.name, model.slo.default_deadline_ms) == ("123", 3_600_000)


def templates(spec: dict[str, Any]) -> dict[str, str]:
    """The pod templates by Deployment of a release with models a (of this spec) and b."""
    models = [
        {"name": "a", "spec": spec, "source": {"builtin": "digits"}},
        {"name": "b", "spec": SPEC, "source": {"builtin": "digits"}},
    ]
    found = documents(over(profile("default"), {"models": models}))
    return {d["metadata"]["name"]: str(d["spec"]["template"]) for d in of_kind(found, "Deployment")}


def test_a_model_rolls_its_own_workers_only() -> None:
    before, after = (templates(over(SPEC, {"model": {"maxBatch": limit}})) for limit in (4, 5))
    assert [name for name in before if before[name] != after[name]] == ["demo-proa-worker-a"]


def test_what_only_frontends_read_rolls_nothing() -> None:
    red = {"policy": "hedge", "patience": "first", "qualitySample": 0.5}
    assert templates(SPEC) == templates(over(SPEC, {"redundancy": red}))


def test_another_code_rolls_the_workers_that_packed_the_old_one() -> None:
    assert templates(SPEC) != templates(over(SPEC, {"redundancy": {"k": 3}}))


@pytest.mark.parametrize(
    ("key", "value", "rolls"),
    [
        ("mode", "correct", True),
        ("plan", "plan.json", True),
        ("onFault", "answer", True),
        ("scheme", "dup", True),
        ("quarantineAfter", 3, False),
    ],
)
def test_what_is_packed_of_the_protection_rolls_workers(key: str, value: Any, rolls: bool) -> None:
    before, after = (
        templates(over(SPEC, {"protection": {"mode": "detect", **more}}))
        for more in ({}, {key: value})
    )
    assert [name for name in before if before[name] != after[name]] == [
        "demo-proa-worker-a"
    ] * rolls


def test_gpu() -> None:
    gpu = {"count": 2, "product": "NVIDIA-H200", "runtimeClassName": "nvidia"}
    found = pod(with_model(workers={"mode": "gpu", "gpu": gpu}))
    worker = found["containers"][0]
    assert worker["image"] == "registry.example/team/proa-worker-gpu:0.1.0"
    assert worker["resources"]["limits"] == {"memory": "1Gi", "nvidia.com/gpu": 2}
    assert found["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert found["runtimeClassName"] == "nvidia"
    assert found["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    pack = next(c for c in found["initContainers"] if c["name"] == "pack")
    assert pack["command"][-2:] == ["--device", "gpu"]
    assert "nvidia.com/gpu" not in pack["resources"]["limits"]


def test_mig() -> None:
    found = pod(with_model(workers={"mode": "mig", "gpu": {"migProfile": "1g.10gb"}}))
    assert found["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert "nvidia.com/gpu" not in found["containers"][0]["resources"]["limits"]


def test_dedicated_parity_workers_are_r_for_every_k() -> None:
    redundancy = {"pool": "dedicated", "policy": "parity", "k": 3, "parity": {"3": ["p.pt2"]}}
    values = with_model(spec=over(SPEC, {"redundancy": redundancy}), workers={"replicas": 7})
    parity = pool(values, "demo-proa-parity-worker-m")
    assert parity["spec"]["replicas"] == 3
    labels = parity["spec"]["template"]["metadata"]["labels"]
    assert labels["proa.dev/role"] == "parity-worker"
    values["models"][0]["parityWorkers"] = {"replicas": 5, "threads": 2}
    parity = pool(values, "demo-proa-parity-worker-m")
    assert parity["spec"]["replicas"] == 5
    assert pool(values)["spec"]["replicas"] == 7


@pytest.mark.parametrize(
    ("workers", "r", "expected"),
    [
        ({}, 1, (1, 1)),
        ({"replicas": 6}, 2, (1, 2)),
        ({"replicas": 1}, 1, (1, 0)),
        ({"replicas": 2}, 3, (1, 1)),
        ({"replicas": 1, "rollingUpdate": {"maxSurge": 0}}, 1, (0, 1)),
        ({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "50%"}}, 1, ("25%", "50%")),
    ],
)
def test_an_update_takes_at_most_r_workers(workers: Values, r: int, expected: Any) -> None:
    redundancy = {"r": r, "parity": {"2": [f"p{row}.pt2" for row in range(r)]}}
    values = with_model(spec=over(SPEC, {"redundancy": redundancy}), workers=workers)
    update = pool(values)["spec"]["strategy"]["rollingUpdate"]
    assert (update["maxSurge"], update["maxUnavailable"]) == expected


def test_autoscaling_leaves_replicas_alone() -> None:
    values = over(with_model(), {"autoscaling": {"workers": {"enabled": True}}})
    assert "replicas" not in pool(values)["spec"]


def test_workers_spread_over_nodes() -> None:
    (spread,) = pod(with_model())["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"]["matchLabels"]["proa.dev/model"] == "m"
    firm = with_model(workers={"topologySpread": {"whenUnsatisfiable": "DoNotSchedule"}})
    assert pod(firm)["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "DoNotSchedule"
    off = with_model(workers={"topologySpread": {"enabled": False}})
    assert "topologySpreadConstraints" not in pod(off)


def test_the_start_may_take_as_long_as_the_worker_gives_itself() -> None:
    worker = pod(with_model(workers={"startSeconds": 301}))["containers"][0]
    probe = worker["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] > 301
    assert {"name": "PROA_WORKER_START_S_MAX", "value": "301"} in worker["env"]


def test_faults_only_with_chaos() -> None:
    values = over(with_model(faults=True), {"chaos": {"enabled": True}})
    assert pack_of(values)[-1] == "--faults"
    encoder = one(documents(values), "Deployment", "demo-proa-encoder")
    env = encoder["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "PROA_ENCODER_FAULTS", "value": "true"} in env


def test_extra_objects_are_mappings_or_templates() -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-mine"
    plain = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}}
    found = documents(over(profile("default"), {"extraObjects": [text, plain]}))
    names = {d["metadata"]["name"] for d in of_kind(found, "ConfigMap")}
    assert {"demo-mine", "plain"} <= names

"""From specs to processes and what they are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from proa.errors import SettingsError
from proa.local.ports import Ports
from proa.local.processes import ProcessSpec
from proa.local.topology import (
    STAGE_CODERS,
    STAGE_FRONTEND,
    STAGE_WORKERS,
    Options,
    Topology,
    parity_workers,
    plan,
)
from proa.spec import CodedModel, ModelSpec, ProgramRef, RedundancySpec, TensorSpec

OPTIONS = Options(run_dir=Path("/run"), port=0, admin_port=0)


def model(name: str = "digits", **redundancy: object) -> CodedModel:
    parity = {k: (ProgramRef(Path("parity.pt2")),) * 3 for k in range(2, 5)}
    return CodedModel(
        name=name,
        model=ModelSpec(
            inputs=(TensorSpec("image", "FP32", (1, 8, 8)),),
            outputs=(TensorSpec("logits", "FP32", (10,)),),
            program=ProgramRef(Path("digits.pt2")),
        ),
        redundancy=RedundancySpec(**{"parity": parity, **redundancy}),  # type: ignore[arg-type]
        path=Path(f"/specs/{name}.yaml"),
    )


def names(topology: Topology) -> list[str]:
    return [spec.name for spec in topology.processes]


def find(topology: Topology, name: str) -> ProcessSpec:
    return next(spec for spec in topology.processes if spec.name == name)


def workers_of(topology: Topology) -> dict[str, list[str]]:
    """PROA_FRONTEND_WORKERS, taken apart: members without their addresses, by model."""
    pools = find(topology, "frontend").env["PROA_FRONTEND_WORKERS"].split(";")
    split = {name: members.split(",") for name, _, members in (p.partition("=") for p in pools)}
    return {name: [m.partition("@")[2] for m in members] for name, members in split.items()}


def test_default_is_k_plus_r_plus_1_workers_both_coders_and_a_frontend() -> None:
    topology = plan([model(k=3)], OPTIONS, Ports())
    workers = [f"worker-{i}" for i in range(5)]
    assert names(topology) == [*workers, "encoder", "decoder", "frontend"]
    assert workers_of(topology) == {"digits": workers}


def test_every_process_has_ports_of_its_own_on_loopback() -> None:
    topology = plan([model()], OPTIONS, Ports())
    used = [
        value
        for spec in topology.processes
        for key, value in spec.env.items()
        if key.endswith("_PORT")
    ]
    assert len(used) == len(set(used)) == 4 * 4 + 3 * 2
    for spec in topology.processes:
        assert spec.env[f"PROA_{spec.name.partition('-')[0].upper()}_HOST"] == "127.0.0.1"
        assert str(spec.admin_port) in used
        assert str(spec.port) in used


def test_the_frontend_is_told_where_everything_is() -> None:
    topology = plan([model()], OPTIONS, Ports())
    env = find(topology, "frontend").env
    assert env["PROA_FRONTEND_SPECS"] == "/specs/digits.yaml"
    assert env["PROA_FRONTEND_ENCODERS"] == f"127.0.0.1:{find(topology, 'encoder').port}"
    assert env["PROA_FRONTEND_DECODERS"] == f"127.0.0.1:{find(topology, 'decoder').port}"
    assert f"127.0.0.1:{find(topology, 'worker-2').port}@worker-2" in env["PROA_FRONTEND_WORKERS"]
    assert topology.address == f"127.0.0.1:{env['PROA_FRONTEND_PORT']}"


def test_frontend_drains_first_and_workers_last() -> None:
    stages = {spec.name: spec.stage for spec in plan([model()], OPTIONS, Ports()).processes}
    assert stages["frontend"] == STAGE_FRONTEND < stages["encoder"] == STAGE_CODERS
    assert stages["decoder"] == STAGE_CODERS < stages["worker-0"] == STAGE_WORKERS


def test_each_model_has_a_pool_of_its_own() -> None:
    options = replace(OPTIONS, workers=2)
    topology = plan([model(), model("letters")], options, Ports())
    assert workers_of(topology) == {
        "digits": ["worker-0", "worker-1"],
        "letters": ["worker-2", "worker-3"],
    }
    repository = find(topology, "worker-3").env["PROA_WORKER_REPOSITORY"]
    assert repository == "/run/packages/letters"


@pytest.mark.parametrize(
    ("workers", "k", "r", "expected"), [(6, 2, 1, 2), (5, 4, 1, 1), (7, 2, 1, 3), (6, 4, 2, 2)]
)
def test_a_dedicated_pool_takes_r_of_every_k_plus_r(
    workers: int, k: int, r: int, expected: int
) -> None:
    coded = model(k=k, r=r, pool="dedicated")
    assert parity_workers(coded.redundancy, workers) == expected
    topology = plan([coded], replace(OPTIONS, workers=workers), Ports())
    roles = [member.partition("#")[2] for member in workers_of(topology)["digits"]]
    assert roles == ["deployed"] * (workers - expected) + ["parity"] * expected


@pytest.mark.parametrize("redundancy", [{"parity": {}}, {"placement": "inline"}])
def test_no_coders_where_no_model_uses_them(redundancy: dict[str, object]) -> None:
    topology = plan([model(**redundancy)], OPTIONS, Ports())
    assert not {"encoder", "decoder"} & set(names(topology))
    # Our services refuse empty settings: the variable is left out.
    assert "PROA_FRONTEND_ENCODERS" not in find(topology, "frontend").env


def test_a_model_that_runs_elsewhere_has_no_workers() -> None:
    remote = model()
    remote = replace(
        remote, model=replace(remote.model, program=None, endpoint="triton.local:8001/digits")
    )
    topology = plan([remote], OPTIONS, Ports())
    assert names(topology) == ["frontend"]
    workers = find(topology, "frontend").env["PROA_FRONTEND_WORKERS"]
    assert workers == "digits=triton.local:8001@triton.local:8001#deployed"


def test_faults_and_service_time_reach_the_services() -> None:
    topology = plan([model()], replace(OPTIONS, faults=True, service_ms=20.0), Ports())
    assert find(topology, "worker-0").env["PROA_WORKER_SERVICE_MS"] == "20"
    assert find(topology, "encoder").env["PROA_ENCODER_FAULTS"] == "true"
    assert "PROA_ENCODER_FAULTS" not in find(plan([model()], OPTIONS, Ports()), "encoder").env


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ([], OPTIONS, "no spec file"),
        ([model(), model()], OPTIONS, "two spec files describe a model named 'digits'"),
        ([model()], replace(OPTIONS, workers=0), "--workers 0: between 1 and 256"),
        ([model()], replace(OPTIONS, service_ms=-1.0), "--service-ms -1: between 0 and 60000"),
        ([model(pool="dedicated")], replace(OPTIONS, workers=1), "'dedicated' none is left"),
        ([replace(model(), path=Path("a,b.yaml"))], OPTIONS, "a,b.yaml: a comma"),
    ],
)
def test_wrong_options_are_refused(
    models: list[CodedModel], options: Options, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(models, options, Ports())

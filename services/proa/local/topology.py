"""From specs to processes: who runs, on which ports, with which environment. Starts nothing.

Each model has workers of its own. They are numbered through, so that `worker-2` is one process.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proa.errors import SettingsError
from proa.local.ports import HOST, Ports
from proa.local.processes import ProcessSpec
from proa.spec import CodedModel, RedundancySpec
from proa.worker.launch import clean_shm, shm_prefix

WORKERS_MIN_DEFAULT = 3
WORKERS_MAX = 256
# Drained in this order: nobody is sent away by a service that still takes requests.
STAGE_FRONTEND, STAGE_CODERS, STAGE_WORKERS = range(3)


@dataclass(frozen=True)
class Options:
    """What `proa up` was asked for. Port 0: any free one. `workers` None: `default_workers`."""

    run_dir: Path = Path(".proa")
    port: int = 8001
    admin_port: int = 9090
    workers: int | None = None
    faults: bool = False
    service_ms: float = 0.0
    frontend_env: Mapping[str, str] = field(default_factory=dict)
    worker_env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPlan:
    """A model, the repository its workers serve, and the workers' names. No worker: an endpoint."""

    name: str
    spec: Path
    repository: Path | None
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Topology:
    """The processes of one `proa up`, and the addresses to reach them."""

    address: str
    admin_address: str
    models: tuple[ModelPlan, ...]
    processes: tuple[ProcessSpec, ...]
    directories: tuple[Path, ...]
    """Scratch directories that must exist before the start and be removed after the end."""


def default_workers(redundancy: RedundancySpec) -> int:
    """A group and its parity in domains of their own, and one worker to be slow or dead."""
    return max(WORKERS_MIN_DEFAULT, redundancy.k + redundancy.r + 1)


def parity_workers(redundancy: RedundancySpec, workers: int) -> int:
    """How many of `workers` serve parity alone: with a dedicated pool, r of every k + r."""
    if redundancy.pool != "dedicated":
        return 0
    return math.ceil(workers * redundancy.r / (redundancy.k + redundancy.r))


def repository_dir(run_dir: Path, model: str) -> Path:
    """Where `proa up` packs `model`."""
    return run_dir / "packages" / model


def plan(models: Sequence[CodedModel], options: Options, ports: Ports) -> Topology:
    """Lay everything out. Raises SettingsError for a taken port or a number out of its limits."""
    _check(models, options)
    port = ports.claim(options.port, "--port")
    admin_port = ports.claim(options.admin_port, "--admin-port")
    workers: list[ProcessSpec] = []
    pools: list[str] = []
    plans: list[ModelPlan] = []
    for model in models:
        own = _pool(model, options, ports, first=len(workers))
        workers += own
        pools.append(f"{model.name}={_members(model, own)}")
        names = tuple(spec.name for spec in own)
        repository = repository_dir(options.run_dir, model.name) if own else None
        plans.append(ModelPlan(model.name, model.path, repository, names))
    coders = _coders(models, options, ports)
    frontend = ProcessSpec(
        name="frontend",
        argv=(sys.executable, "-m", "proa.frontend"),
        env={
            **options.frontend_env,
            "PROA_FRONTEND_SPECS": ",".join(str(model.path) for model in models),
            "PROA_FRONTEND_WORKERS": ";".join(pools),
            "PROA_FRONTEND_HOST": HOST,
            "PROA_FRONTEND_PORT": str(port),
            "PROA_FRONTEND_ADMIN_PORT": str(admin_port),
            **({"PROA_FRONTEND_FAULTS": "true"} if options.faults else {}),
            **{f"PROA_FRONTEND_{c.name.upper()}S": f"{HOST}:{c.port}" for c in coders},
        },
        admin_port=admin_port,
        port=port,
        stage=STAGE_FRONTEND,
    )
    return Topology(
        address=f"{HOST}:{port}",
        admin_address=f"{HOST}:{admin_port}",
        models=tuple(plans),
        processes=(*workers, *coders, frontend),
        directories=tuple(Path(spec.env["PROA_WORKER_SCRATCH"]) for spec in workers),
    )


def _check(models: Sequence[CodedModel], options: Options) -> None:
    if not models:
        raise SettingsError("no spec file given")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"two spec files describe a model named {name!r}")
    for model in models:
        if "," in str(model.path):
            raise SettingsError(
                f"{model.path}: a comma in the path of a spec file is not supported"
            )
    if options.workers is not None and not 1 <= options.workers <= WORKERS_MAX:
        raise SettingsError(f"--workers {options.workers}: between 1 and {WORKERS_MAX}")
    if not 0 <= options.service_ms <= 60_000:
        raise SettingsError(f"--service-ms {options.service_ms:g}: between 0 and 60000")


def _pool(
    model: CodedModel, options: Options, ports: Ports, *, first: int
) -> list[ProcessSpec]:  # fmt: skip
    if model.model.endpoint is not None:
        return []
    count = options.workers or default_workers(model.redundancy)
    if parity_workers(model.redundancy, count) >= count:
        raise SettingsError(
            f"--workers {count}: with pool 'dedicated' none is left for the model {model.name!r}"
        )
    repository = repository_dir(options.run_dir, model.name)
    return [_worker(first + i, repository, options, ports) for i in range(count)]


def _worker(index: int, repository: Path, options: Options, ports: Ports) -> ProcessSpec:
    name = f"worker-{index}"
    scratch = options.run_dir / "scratch" / name
    port, admin_port = ports.free(), ports.free()
    env = {
        **options.worker_env,
        "PROA_WORKER_HOST": HOST,
        "PROA_WORKER_REPOSITORY": str(repository),
        "PROA_WORKER_PORT": str(port),
        "PROA_WORKER_HTTP_PORT": str(ports.free()),
        "PROA_WORKER_METRICS_PORT": str(ports.free()),
        "PROA_WORKER_ADMIN_PORT": str(admin_port),
        "PROA_WORKER_SCRATCH": str(scratch),
    }
    if options.service_ms:
        env["PROA_WORKER_SERVICE_MS"] = f"{options.service_ms:g}"
    return ProcessSpec(
        name=name,
        argv=(sys.executable, "-m", "proa.worker"),
        env=env,
        admin_port=admin_port,
        port=port,
        stage=STAGE_WORKERS,
        grace_s=15.0,  # Triton takes 2 to 3 s to stop, on an idle machine
        clean=lambda: clean_shm(shm_prefix(scratch)),
    )


def _members(model: CodedModel, workers: Sequence[ProcessSpec]) -> str:
    """One pool in the form of PROA_FRONTEND_WORKERS. A worker is its own failure domain here."""
    if model.model.endpoint is not None:
        address = model.model.endpoint.partition("/")[0]
        return f"{address}@{address}#deployed"
    parity = parity_workers(model.redundancy, len(workers))
    deployed = len(workers) - parity
    members: list[str] = []
    for i, worker in enumerate(workers):
        role = "" if not parity else "#deployed" if i < deployed else "#parity"
        members.append(f"{HOST}:{worker.port}@{worker.name}{role}")
    return ",".join(members)


def _coders(models: Sequence[CodedModel], options: Options, ports: Ports) -> list[ProcessSpec]:
    """Encoder and decoder, where some model can use them."""
    if not any(_uses_coders(model) for model in models):
        return []
    return [_coder(role, options, ports) for role in ("encoder", "decoder")]


def _uses_coders(model: CodedModel) -> bool:
    ours = model.model.program is not None
    return ours and model.has_parity and model.redundancy.placement != "inline"


def _coder(role: str, options: Options, ports: Ports) -> ProcessSpec:
    port, admin_port = ports.free(), ports.free()
    prefix = f"PROA_{role.upper()}"
    env = {
        f"{prefix}_HOST": HOST,
        f"{prefix}_PORT": str(port),
        f"{prefix}_ADMIN_PORT": str(admin_port),
    }
    if options.faults:
        env[f"{prefix}_FAULTS"] = "true"
    return ProcessSpec(
        name=role,
        argv=(sys.executable, "-m", f"proa.{role}"),
        env=env,
        admin_port=admin_port,
        port=port,
        stage=STAGE_CODERS,
    )

"""`proa-service chaos`: one experiment in the namespace of its pod, then an exit code.

0 the verdict is Pass; 1 Fail, Stopped, or an error; 2 wrong settings or a wrong experiment file.
The journal goes to stdout, the timeline to the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from proa import spec as specs
from proa.cluster import ApiAccess, Lease, LeaseTimes, load_api
from proa.cluster.connection import Connection
from proa.cluster.slices import ROLES as SERVING_ROLES
from proa.errors import (
    DeadlinePassed,
    InvalidRequest,
    ProaError,
    SettingsError,
    SpecError,
    Unavailable,
)
from proa.rpc import TOKEN_CHARS_MAX
from proa.runtime import log as logs
from proa.runtime.settings import from_env
from proa_chaos.events import Event
from proa_chaos.experiment import Experiment
from proa_chaos.file import load_experiment
from proa_chaos.journal import journal
from proa_chaos.kubernetes.announce import Announcer
from proa_chaos.kubernetes.backend import KubernetesBackend
from proa_chaos.kubernetes.doors import Doors, client_tls
from proa_chaos.kubernetes.faults import Ways
from proa_chaos.kubernetes.mesh import Mesh
from proa_chaos.kubernetes.nodes import Nodes
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.removal import Removal
from proa_chaos.kubernetes.settings import ChaosSettings
from proa_chaos.kubernetes.store import ROLES as STORE_ROLES
from proa_chaos.kubernetes.store import KubernetesStore
from proa_chaos.options import Options, adapted, chosen_model
from proa_chaos.report import write_report
from proa_chaos.result import Result, Verdict
from proa_chaos.runner import Runner
from proa_chaos.serving import serving_runner
from proa_chaos.signals import until_signal
from proa_chaos.store.system import Store

log = logging.getLogger(__name__)

# A dead holder is known by its Lease not changing for so long.
LEASE = LeaseTimes(duration_s=10, renew_s=3.0, poll_s=1.0)
PASSED, FAILED, USAGE = 0, 1, 2


def main() -> int:
    """Run it as the environment says."""
    try:
        logs.setup_from("chaos", os.environ)
        settings = from_env(ChaosSettings, os.environ)
        experiment = load_experiment(settings.file)
        result = asyncio.run(run_in_cluster(experiment, settings, load_api(os.environ)))
    except (SettingsError, SpecError, InvalidRequest) as exc:
        log.error("%s", exc)  # noqa: TRY400 - one line
        return USAGE
    except ProaError as exc:
        log.error("%s: %s", type(exc).__name__, exc)  # noqa: TRY400 - one line
        return FAILED
    sys.stdout.write(json.dumps(journal(result)) + "\n")
    if settings.out is not None:
        write_report(result, settings.out)
    return PASSED if result.verdict is Verdict.PASS else FAILED


async def run_in_cluster(
    experiment: Experiment,
    settings: ChaosSettings,
    access: ApiAccess,
    *,
    times: LeaseTimes = LEASE,
) -> Result:
    """Run it against a release. SIGTERM rolls back and stops it. `times`: of the Lease by which
    one experiment at a time runs.

    Errors: Unavailable (no frontend, no API server, another experiment), and those of `Runner`.
    """
    options = Options(model=settings.model, rate_hz=settings.rate_hz, parallel=settings.parallel)
    experiment = adapted(experiment, options)
    namespace = settings.namespace or access.namespace
    on_store = experiment.workload.store is not None
    async with Connection(access) as connection, _alone(settings, access, namespace, times) as lost:
        announcer = Announcer(connection, namespace, settings.job, settings.pod)
        prefix = f"chaos-{secrets.token_hex(4)}"
        roles = STORE_ROLES if on_store else SERVING_ROLES
        pods = Pods(connection, namespace, settings.instance, roles)
        nodes, mesh = Nodes(connection, prefix), Mesh(connection, namespace, prefix)
        ways = Ways(pods, Removal(pods, nodes), mesh, prefix)
        await announcer.begin(experiment.name, settings.seed)
        mesh.owner = announcer.owner
        if settings.nodes:
            await _sweep(nodes)
        running = (_on_store if on_store else _on_models)(experiment, settings, ways)
        try:
            async with running as runner:
                result = await until_signal(runner, lost=lost, why=_lost(settings))
        except ProaError as exc:
            await announcer.refused(experiment.name, str(exc))
            raise
        await announcer.end(result)
        return result


@contextlib.asynccontextmanager
async def _on_models(
    experiment: Experiment, settings: ChaosSettings, ways: Ways
) -> AsyncIterator[Runner]:
    token = _token(settings.token_file)
    tls = client_tls(settings.client_tls_dir, settings.address)
    backend = KubernetesBackend(
        ways,
        Doors(settings.tls_dir, tls, token),
        settings.address,
        seed=settings.seed,
        token=token,
        parallel=settings.parallel,
    )
    try:
        model = chosen_model(experiment, await backend.models())
        backend.code = _code(settings.specs, model)
        yield serving_runner(
            experiment,
            backend,
            model,
            seed=settings.seed,
            force=settings.force,
            tls=tls,
            token=token,
            tell=_tell,
        )
    finally:
        await backend.close()


@contextlib.asynccontextmanager
async def _on_store(
    experiment: Experiment, settings: ChaosSettings, ways: Ways
) -> AsyncIterator[Runner]:
    if settings.store is None:
        raise SettingsError("PROA_CHAOS_STORE: an experiment on a store needs its coordinators")
    doors = Doors(settings.tls_dir, None, None)
    backend = KubernetesStore(ways, doors, settings.store, seed=settings.seed)
    try:
        system = Store(experiment, backend, seed=settings.seed, access=settings.access)
        yield Runner(experiment, system, seed=settings.seed, force=settings.force, tell=_tell)
    finally:
        await backend.close()


async def _sweep(nodes: Nodes) -> None:
    """Lift the cordons that dead runs left. What cannot be lifted is a line of the log."""
    try:
        await nodes.sweep()
    except ProaError as exc:
        log.warning("cordons of runs that died are not looked for: %s", exc)


@contextlib.asynccontextmanager
async def _alone(
    settings: ChaosSettings, access: ApiAccess, namespace: str, times: LeaseTimes
) -> AsyncIterator[asyncio.Event | None]:
    """Hold the Lease that lets one experiment at a time into a release. The event is set when it
    is lost."""
    if settings.parallel:
        yield None
        return
    holder = settings.pod or f"chaos-{secrets.token_hex(4)}"
    lease = Lease(
        access,
        name=_lease(settings),
        holder=holder,
        namespace=namespace,
        on_error=log.warning,
        times=times,
    )
    acquire_s = times.duration_s + 3 * times.poll_s
    async with contextlib.AsyncExitStack() as stack:
        try:
            lost = await stack.enter_async_context(lease.held(acquire_s))
        except DeadlinePassed as exc:
            raise Unavailable(
                f"another experiment runs ({exc}); wait for its end, or run both:"
                " PROA_CHAOS_PARALLEL=true"
            ) from exc
        yield lost


def _lease(settings: ChaosSettings) -> str:
    return f"{settings.instance}-chaos"


def _lost(settings: ChaosSettings) -> str:
    """What is said of a run whose Lease went to somebody else, or could not be renewed."""
    return (
        f"the Lease {_lease(settings)} was lost (another holder, or no renewal in time): another"
        " experiment may run now"
    )


def _tell(event: Event) -> None:
    log.info("%7.1f s  %-8s  %s", event.at_s, event.kind, event.text)


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(TOKEN_CHARS_MAX + 2).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"PROA_CHAOS_TOKEN_FILE={file} cannot be read: {exc}") from exc


def _code(folder: Path | None, model: str | None) -> tuple[int, int]:
    """k and r as the spec says; one to spare where there is no code, or no spec."""
    if folder is None or model is None or not (path := folder / f"{model}.yaml").is_file():
        return 1, 1
    spec = specs.load(path)
    return (spec.redundancy.k, spec.redundancy.r) if spec.has_parity else (1, 1)

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
from proa_chaos.kubernetes.pods import Pods
from proa_chaos.kubernetes.settings import ChaosSettings
from proa_chaos.options import Options, adapted, chosen_model
from proa_chaos.report import write_report
from proa_chaos.result import Result, Verdict
from proa_chaos.runner import Runner
from proa_chaos.signals import until_signal

log = logging.getLogger(__name__)

# A dead holder is known by its Lease not changing for so long.
LEASE = LeaseTimes(duration_s=10, renew_s=3.0, poll_s=1.0)
PASSED, FAILED, USAGE = 0, 1, 2


def main() -> int:
    """Run it as the environment says."""
    logs.setup("chaos")
    try:
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
    options = Options(model=settings.model, rate_hz=settings.rate_hz)
    experiment = adapted(experiment, options)
    namespace = settings.namespace or access.namespace
    token = _token(settings.token_file)
    tls = client_tls(settings.client_tls_dir, settings.address)
    async with Connection(access) as connection, _alone(settings, access, namespace, times):
        announcer = Announcer(connection, namespace, settings.job, settings.pod)
        backend = KubernetesBackend(
            Pods(connection, namespace, settings.instance),
            Doors(settings.tls_dir, tls, token),
            settings.address,
            prefix=f"chaos-{secrets.token_hex(4)}",
            seed=settings.seed,
            token=token,
            parallel=settings.parallel,
        )
        await announcer.begin(experiment.name, settings.seed)
        try:
            model = chosen_model(experiment, await backend.models())
            backend.code = _code(settings.specs, model)
            runner = Runner(
                experiment,
                backend,
                model,
                seed=settings.seed,
                force=settings.force,
                tls=tls,
                token=token,
                tell=_tell,
            )
            result = await until_signal(runner)
        except ProaError as exc:
            await announcer.refused(experiment.name, str(exc))
            raise
        finally:
            await backend.close()
        await announcer.end(result)
        return result


@contextlib.asynccontextmanager
async def _alone(
    settings: ChaosSettings, access: ApiAccess, namespace: str, times: LeaseTimes
) -> AsyncIterator[None]:
    """Hold the Lease that lets one experiment at a time into a release."""
    if settings.parallel:
        yield
        return
    holder = settings.pod or f"chaos-{secrets.token_hex(4)}"
    name = f"{settings.instance}-chaos"
    lease = Lease(
        access, name=name, holder=holder, namespace=namespace, on_error=log.warning, times=times
    )
    acquire_s = times.duration_s + 3 * times.poll_s
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(lease.held(acquire_s))
        except DeadlinePassed as exc:
            raise Unavailable(
                f"another experiment runs ({exc}); wait for its end, or run both:"
                " PROA_CHAOS_PARALLEL=true"
            ) from exc
        yield


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

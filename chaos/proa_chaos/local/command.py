"""`proa chaos run FILE --local`: lock, run, roll back whatever happens, write what came of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from proa_chaos.events import Tell, tell_nobody
from proa_chaos.experiment import Experiment
from proa_chaos.local.backend import LocalBackend, run_id
from proa_chaos.local.lock import Lock, locked
from proa_chaos.local.store import LocalStoreBackend
from proa_chaos.options import Options, adapted, chosen_model
from proa_chaos.result import Result
from proa_chaos.runner import Runner
from proa_chaos.serving import serving_runner
from proa_chaos.signals import until_signal
from proa_chaos.store.system import Store

RUN_DIR, STORE_RUN_DIR = Path(".proa"), Path(".proa-store")

FaultsUntil = Callable[[float], None]


async def run_local(
    experiment: Experiment, options: Options, *, tell: Tell = tell_nobody
) -> Result:
    """Run it on `proa up` or `proa store up`. SIGTERM, SIGINT and SIGHUP roll back and stop it.

    Errors: Unavailable (nothing runs there, or another experiment does), and those of `Runner`.
    """
    experiment = adapted(experiment, options)
    of_store = experiment.workload.store is not None
    run_dir = (options.run_dir or (STORE_RUN_DIR if of_store else RUN_DIR)).resolve()
    with _lock(run_dir, experiment.name, parallel=options.parallel) as lock:
        until = lock.faults_until if lock else lambda _: None
        run = _on_store if of_store else _on_models
        return await run(experiment, options, run_dir, until, tell)


async def _on_models(
    experiment: Experiment, options: Options, run_dir: Path, until: FaultsUntil, tell: Tell
) -> Result:
    backend = LocalBackend(run_dir, prefix=run_id(), seed=options.seed, faults_until=until)
    try:
        model = chosen_model(experiment, backend.models())
        runner = serving_runner(
            experiment, backend, model, seed=options.seed, force=options.force, tell=tell
        )
        return await until_signal(runner)
    finally:
        await backend.close()


async def _on_store(
    experiment: Experiment, options: Options, run_dir: Path, until: FaultsUntil, tell: Tell
) -> Result:
    backend = LocalStoreBackend(run_dir, prefix=run_id(), seed=options.seed, faults_until=until)
    try:
        system = Store(experiment, backend, seed=options.seed)
        return await until_signal(
            Runner(experiment, system, seed=options.seed, force=options.force, tell=tell)
        )
    finally:
        await backend.close()


def _lock(
    run_dir: Path, name: str, *, parallel: bool
) -> contextlib.AbstractContextManager[Lock | None]:
    if parallel or not run_dir.is_dir():  # where nothing runs, the backend says so
        return contextlib.nullcontext()
    return locked(run_dir, name)

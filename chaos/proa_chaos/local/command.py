"""`proa chaos run FILE --local`: lock, run, roll back whatever happens, write what came of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from proa_chaos.events import Tell, tell_nobody
from proa_chaos.experiment import Experiment
from proa_chaos.local.backend import LocalBackend, run_id
from proa_chaos.local.lock import Lock, locked
from proa_chaos.options import Options, adapted, chosen_model
from proa_chaos.result import Result
from proa_chaos.runner import Runner
from proa_chaos.signals import until_signal


async def run_local(
    experiment: Experiment, options: Options, *, tell: Tell = tell_nobody
) -> Result:
    """Run it against `proa up`. SIGTERM, SIGINT and SIGHUP roll back and stop it.

    Errors: Unavailable (nothing runs there, or another experiment does), and those of `Runner`.
    """
    experiment = adapted(experiment, options)
    run_dir = options.run_dir.resolve()
    with _lock(run_dir, experiment.name, parallel=options.parallel) as lock:
        backend = LocalBackend(
            run_dir,
            prefix=run_id(),
            seed=options.seed,
            faults_until=lock.faults_until if lock else lambda _: None,
        )
        try:
            model = chosen_model(experiment, backend.models())
            runner = Runner(
                experiment, backend, model, seed=options.seed, force=options.force, tell=tell
            )
            return await until_signal(runner)
        finally:
            await backend.close()


def _lock(
    run_dir: Path, name: str, *, parallel: bool
) -> contextlib.AbstractContextManager[Lock | None]:
    if parallel or not run_dir.is_dir():  # where nothing runs, the backend says so
        return contextlib.nullcontext()
    return locked(run_dir, name)

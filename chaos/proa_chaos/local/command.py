"""`proa chaos run FILE --local`: lock, run, roll back whatever happens, write what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from proa.errors import InvalidRequest, RequestCancelled
from proa_chaos.events import Tell, tell_nobody
from proa_chaos.experiment import Experiment
from proa_chaos.local.backend import LocalBackend, run_id
from proa_chaos.local.lock import Lock, locked
from proa_chaos.result import Result
from proa_chaos.runner import Runner

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Options:
    """How to run. None: as the file says."""

    run_dir: Path = Path(".proa")
    seed: int = 0
    force: bool = False
    parallel: bool = False
    rate_hz: float | None = None
    inputs: Path | None = None
    model: str | None = None


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
            model = _model(experiment, backend.models())
            runner = Runner(
                experiment, backend, model, seed=options.seed, force=options.force, tell=tell
            )
            return await _until_signal(runner)
        finally:
            await backend.close()


def adapted(experiment: Experiment, options: Options) -> Experiment:
    """The experiment with the options in place of what the file says. `rate_hz`: of the phases
    before and after; that of `during` keeps its proportion."""
    workload = experiment.workload
    if options.rate_hz is not None:
        factor = options.rate_hz / workload.rate_hz
        during = workload.during_rate_hz
        workload = replace(
            workload,
            rate_hz=options.rate_hz,
            during_rate_hz=None if during is None else during * factor,
        )
    if options.inputs is not None:
        workload = replace(workload, inputs=options.inputs)
    if options.model is not None:
        workload = replace(workload, model=options.model)
    return replace(experiment, workload=workload)


def _lock(
    run_dir: Path, name: str, *, parallel: bool
) -> contextlib.AbstractContextManager[Lock | None]:
    if parallel or not run_dir.is_dir():  # where nothing runs, the backend says so
        return contextlib.nullcontext()
    return locked(run_dir, name)


def _model(experiment: Experiment, served: tuple[str, ...]) -> str:
    model = experiment.workload.model or (served[0] if served else "")
    if model not in served:
        raise InvalidRequest(f"model {model!r} is not served; there are {', '.join(served)}")
    return model


async def _until_signal(runner: Runner) -> Result:
    """Run; a signal cancels it, once: a second one must not stop the roll-back."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(runner.run())
    for number in _SIGNALS:
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError as exc:
        raise RequestCancelled("told to stop before anything was done") from exc
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

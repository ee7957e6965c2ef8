"""What a run may have otherwise than its file says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from proa.errors import InvalidRequest
from proa_chaos.experiment import Experiment


@dataclass(frozen=True)
class Options:
    """How to run. None: as the file says. run_dir None: where the command that starts such a system
    keeps its own."""

    run_dir: Path | None = None
    seed: int = 0
    force: bool = False
    parallel: bool = False
    rate_hz: float | None = None
    inputs: Path | None = None
    model: str | None = None


def adapted(experiment: Experiment, options: Options) -> Experiment:
    """The experiment with the options in place of what the file says. Errors:
    InvalidRequest (not for a store). `rate_hz`: of the phases
    before and after; that of `during` keeps its proportion."""
    workload = experiment.workload
    if workload.store is not None:
        _check_store(options)
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


def _check_store(options: Options) -> None:
    wrong = {
        "--rate": options.rate_hz,
        "--inputs": options.inputs,
        "--model": options.model,
        # Two would train the same rows.
        "--parallel": options.parallel or None,
    }
    for flag, value in wrong.items():
        if value is not None:
            raise InvalidRequest(f"{flag}: not for an experiment on a store")


def chosen_model(experiment: Experiment, served: tuple[str, ...]) -> str:
    """The model that is asked. Errors: InvalidRequest when it is not served."""
    model = experiment.workload.model or (served[0] if served else "")
    if model not in served:
        raise InvalidRequest(f"model {model!r} is not served; there are {', '.join(served)}")
    return model

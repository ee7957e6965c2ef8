"""A Chaos Toolkit extension: probes and actions for its `python` provider, with plain arguments.

    {"type": "probe", "name": "p99", "tolerance": {"type": "range", "range": [0, 200]},
     "provider": {"type": "python", "module": "proa_chaos.toolkit", "func": "p99_ms",
                  "arguments": {"address": "localhost:8001", "model": "digits"}}}

Nothing here needs the toolkit. Faults are those of `proa up --faults` on this machine, and end by
themselves. Errors are ours (`proa.errors`), and say what is wrong.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from proa.client import AsyncClient, Tls
from proa.errors import BadAnswer, InvalidRequest
from proa_chaos.experiment import Choice, Fault, Parameters, Workload
from proa_chaos.file import load_experiment
from proa_chaos.inband import KINDS
from proa_chaos.journal import journal
from proa_chaos.load import Load
from proa_chaos.local.backend import LocalBackend
from proa_chaos.local.command import run_local
from proa_chaos.measures import ServingObservations
from proa_chaos.options import Options
from proa_chaos.plan import Hit
from proa_chaos.queries import prepare_queries

__all__ = ["clear", "failed_percent", "inject", "measure", "p99_ms", "run_experiment"]

PREFIX = "toolkit"
TTL_S_MAX = 600.0


def run_experiment(
    file: str,
    run_dir: str | None = None,
    model: str | None = None,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Run an experiment file against `proa up` or `proa store up`; its journal (the verdict:
    `chaosresult`)."""
    options = Options(
        run_dir=Path(run_dir) if run_dir else None, model=model, seed=seed, force=force
    )
    return journal(asyncio.run(run_local(load_experiment(Path(file)), options)))


def p99_ms(address: str, model: str, **load: Any) -> float:
    """99th percentile of the latency under a short load; `load` as `measure` has it."""
    return measure("p99Ms", address, model, **load)


def failed_percent(address: str, model: str, **load: Any) -> float:
    """Percentage of failed requests under a short load; `load` as `measure` has it."""
    return measure("failedPercent", address, model, **load)


def measure(
    name: str,
    address: str,
    model: str,
    seconds: float = 3.0,
    rate_hz: float = 20.0,
    deadline_ms: float = 1000.0,
    ca: str | None = None,
    token: str | None = None,
    seed: int = 0,
) -> float:
    """A measure of docs/chaos.md (`p50Ms`, `wrong` ...) over `seconds` of open-loop load.

    ca: PEM file, for a frontend with TLS. Errors: BadAnswer where there was nothing to measure.
    """
    workload = Workload(rate_hz=rate_hz, during_s=seconds, deadline_ms=deadline_ms)
    seen = ServingObservations(deadline_ms / 1000.0)

    async def ask() -> None:
        tls = Tls(ca=ca) if ca else None
        async with AsyncClient(
            address, deadline_s=seen.deadline_s, retry=False, tls=tls, token=token
        ) as client:
            queries = await prepare_queries(client, model, workload, seed)
            load = Load(client, model, workload, queries, seen, seed)
            await load.run("during", asyncio.get_running_loop().time())

    asyncio.run(ask())
    try:
        found = seen.measure(name, "during")
    except KeyError as exc:
        raise InvalidRequest(f"{name!r} is not a measure") from exc
    if found is None:
        raise BadAnswer(f"{name}: nothing to measure in {len(seen.samples)} requests")
    return found


def inject(
    target: str,
    action: str,
    seconds: float,
    model: str | None = None,
    run_dir: str = ".proa",
    delay_ms: int = 0,
    probability: float = 1.0,
    program: str = "",
    bits: int = 1,
) -> str:
    """A fault at one process of `proa up --faults` (as `proa status` names it), for `seconds`.

    action: slow, pause, error, drop, bitflip. A second fault at that process replaces the first.
    """
    if not 0.0 < seconds <= TTL_S_MAX:
        raise InvalidRequest(f"seconds={seconds:g}: the limits are 0 to {TTL_S_MAX:g}")
    if action not in KINDS or action == "partition":
        known = ", ".join(sorted(KINDS.keys() - {"partition"}))
        raise InvalidRequest(f"action {action!r} is not one of {known}")
    parameters = Parameters(delay_ms=delay_ms, probability=probability, program=program, bits=bits)
    return asyncio.run(_act(target, action, parameters, seconds, model, Path(run_dir)))


def clear(target: str, model: str | None = None, run_dir: str = ".proa") -> str:
    """End what `inject` began at this process."""
    return asyncio.run(_act(target, "slow", Parameters(), 0.0, model, Path(run_dir)))


async def _act(
    name: str, action: str, parameters: Parameters, seconds: float, model: str | None, run_dir: Path
) -> str:
    backend = LocalBackend(run_dir, prefix=PREFIX, seed=0)
    try:
        targets = await backend.targets(model or backend.models()[0])
        found = [target for target in targets if target.name == name]
        if not found:
            known = ", ".join(target.name for target in targets)
            raise InvalidRequest(f"there is no process {name!r}; there are {known}")
        hit = Hit("0", Fault(PREFIX, action, Choice(), parameters=parameters), found[0], 0, seconds)
        if not seconds:
            await backend.end(hit)
            return f"faults of {name} ended"
        await backend.prepare([hit])
        await backend.inject(hit, seconds)
        return f"{hit.text}, {seconds:g} s"
    finally:
        await backend.close()

"""proa.api.v1.Frontend: what this frontend sees, as a stream of reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from proa.api.v1 import frontend_pb2, frontend_pb2_grpc
from proa.errors import InvalidRequest, Overloaded
from proa.frontend.auth import Auth
from proa.frontend.history import in_force
from proa.frontend.models import Model, Models
from proa.frontend.pool import Member
from proa.frontend.tokens import ANYONE, Tenant
from proa.frontend.windows import FaultWindows
from proa.rpc import Context, servicer_stream_errors
from proa.runtime.waiting import set_within

INTERVAL_MS_DEFAULT, INTERVAL_MS_MIN, INTERVAL_MS_MAX = 1000, 100, 60_000
NAME = frontend_pb2.DESCRIPTOR.services_by_name["Frontend"].full_name


class StatusService(frontend_pb2_grpc.FrontendServicer):
    """The Status stream, for at most `watchers_max` watchers; each sees the models it may ask."""

    def __init__(
        self, models: Models, auth: Auth, windows: FaultWindows, *, watchers_max: int
    ) -> None:
        self._models = models
        self._auth = auth
        self._windows = windows
        self._watchers_max = watchers_max
        self._watchers = 0
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """End all streams: their watchers would hold up the end of the process."""
        self._draining.set()

    @servicer_stream_errors
    async def Status(
        self, request: frontend_pb2.StatusRequest, context: Context
    ) -> AsyncIterator[frontend_pb2.StatusReport]:
        interval_ms = request.interval_ms or INTERVAL_MS_DEFAULT
        if not INTERVAL_MS_MIN <= interval_ms <= INTERVAL_MS_MAX:
            raise InvalidRequest(
                f"interval_ms is {interval_ms}; the limits are {INTERVAL_MS_MIN} to"
                f" {INTERVAL_MS_MAX}"
            )
        if self._watchers >= self._watchers_max:
            raise Overloaded(f"{self._watchers_max} watchers, which is the limit")
        self._watchers += 1
        try:
            while not self._draining.is_set():
                yield self.report(self._auth.tenant(context.invocation_metadata()))
                await set_within(self._draining, interval_ms / 1000.0)
        finally:
            self._watchers -= 1

    def report(self, tenant: Tenant = ANYONE) -> frontend_pb2.StatusReport:
        """One report of now, for `tenant`."""
        models = [
            _model_status(model) for name, model in self._models.by_name.items() if tenant.may(name)
        ]
        return frontend_pb2.StatusReport(
            unix_ms=int(time.time() * 1000), models=models, faults=self._faults(tenant)
        )

    def _faults(self, tenant: Tenant) -> list[frontend_pb2.FaultWindow]:
        """Those that `tenant` may know of: who may not ask all models, those of its workers."""
        found = self._windows.recent()
        if tenant.models is None:
            return found
        models = [model for name, model in self._models.by_name.items() if tenant.may(name)]
        return [w for w in found if any(w.target in model.pool.members for model in models)]


def _model_status(model: Model) -> frontend_pb2.ModelStatus:
    engine = model.shell.engine
    stats, quality = engine.state.stats, engine.state.quality
    plan = engine.in_force()
    p50, p95, p99, p999 = model.recent.quantiles_ms(0.5, 0.95, 0.99, 0.999)
    return frontend_pb2.ModelStatus(
        name=model.spec.name,
        package=model.pool.package,
        mode=engine.config.mode,
        policy=engine.config.policy,
        policy_in_force=in_force(model),
        why=plan.why,
        queue_depth=engine.queue_depth,
        workers=[_worker_status(model, member) for member in model.pool.members.values()],
        answers=dict(stats.answers),
        failed=sum(stats.failed.values()),
        sent=stats.sent,
        redundant_sent=sum(stats.redundant.values()),
        groups=dict(stats.groups),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        p999_ms=p999,
        agreement=quality.agreement or 0.0,
        agreement_samples=quality.samples,
        protection=model.spec.protection.mode,
    )


def _worker_status(model: Model, member: Member) -> frontend_pb2.WorkerStatus:
    worker = model.shell.engine.state.workers.get(member.address.name)
    status = frontend_pb2.WorkerStatus(
        name=member.address.name,
        domain=member.address.domain,
        roles=sorted(member.roles),
        state=member.state if not member.reason else f"{member.state}: {member.reason}",
    )
    if worker is not None:
        status.inflight = len(worker.running)
        status.latency_ms = worker.latency_s * 1000.0
        status.errors = worker.errors
        status.answered = worker.answered
    tally = model.pool.integrity.tallies.get(member.address.name)
    if tally is not None:
        status.checks = tally.checks
        status.faults = tally.faults
    return status

"""What the cluster is told of a run: Events, and annotations of its Job."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from proa.cluster.connection import Call, Connection
from proa.errors import ProaError
from proa_chaos.result import Result, Verdict

log = logging.getLogger(__name__)

MESSAGE_CHARS_MAX = 1024
SOURCE = "proa-chaos"


class Announcer:
    """Tells of a run at its Job `job`, or at `pod` where there is none; without both, nobody.

    What the API server refuses is a line of the log: the experiment goes on.
    """

    def __init__(
        self, connection: Connection, namespace: str, job: str | None, pod: str | None
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._job, self._pod = job, pod
        self._uid = ""

    async def begin(self, experiment: str, seed: int) -> None:
        """Errors: none."""
        if self._job is not None:
            found = await self._ask(Call("get", "batch", "jobs", self._namespace, self._job))
            meta = found.get("metadata")
            self._uid = str(meta.get("uid", "")) if isinstance(meta, Mapping) else ""
        await self._event("ChaosStarted", f"experiment {experiment}, seed {seed}")

    @property
    def owner(self) -> Mapping[str, Any] | None:
        """An ownerReference to the Job, once it has begun; None where there is no Job."""
        if self._job is None or not self._uid:
            return None
        return {"apiVersion": "batch/v1", "kind": "Job", "name": self._job, "uid": self._uid}

    async def refused(self, experiment: str, why: str) -> None:
        """It could not begin."""
        await self._event("ChaosRefused", f"experiment {experiment}: {why}", warning=True)

    async def end(self, result: Result) -> None:
        """Errors: none."""
        verdict, name = result.verdict, result.experiment.name
        text = f"experiment {name}: {verdict.value}. {result.fail_step}".strip()
        failed = verdict is not Verdict.PASS
        await self._event(f"Chaos{verdict.value}", text, warning=failed)
        if self._job is not None:
            notes = {
                "proa.dev/chaos-verdict": verdict.value,
                "proa.dev/chaos-fail-step": result.fail_step[:MESSAGE_CHARS_MAX],
            }
            body = {"metadata": {"annotations": notes}}
            await self._ask(Call("patch", "batch", "jobs", self._namespace, self._job, body=body))

    async def _event(self, reason: str, message: str, *, warning: bool = False) -> None:
        name = self._job or self._pod
        if name is None:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about = {"apiVersion": "batch/v1" if self._job else "v1", "name": name}
        about |= {"kind": "Job" if self._job else "Pod", "namespace": self._namespace}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name[:200]}.{secrets.token_hex(8)}",
                "namespace": self._namespace,
            },
            "involvedObject": about | ({"uid": self._uid} if self._uid else {}),
            "reason": reason,
            "message": message[:MESSAGE_CHARS_MAX],
            "type": "Warning" if warning else "Normal",
            "source": {"component": SOURCE},
            "reportingComponent": SOURCE,
            "reportingInstance": self._pod or "",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._ask(Call("create", "", "events", self._namespace, body=body))

    async def _ask(self, call: Call) -> Mapping[str, Any]:
        try:
            return await self._connection.answer(call)
        except ProaError as exc:
            log.warning("not announced: %s", exc)
            return {}

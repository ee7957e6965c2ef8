"""The pods of one release through the Kubernetes API: list, delete, evict."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proa.cluster.connection import ApiError, Call, Connection
from proa.cluster.slices import MODEL_LABEL, PORT_NAME, ROLE_LABEL, ROLES, join_host_port
from proa.errors import BadAnswer, InvalidRequest

INSTANCE_LABEL = "app.kubernetes.io/instance"
PODS_MAX = 4096
GONE, CONFLICT = 404, 409
LEAVING = "is leaving"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Pod:
    """`owner`: uid of what would replace it; `waits`: why it is not ready, empty if it is."""

    name: str
    uid: str
    owner: str
    node: str
    address: str
    labels: Mapping[str, str]
    waits: str

    @property
    def leaving(self) -> bool:
        return self.waits == LEAVING

    @property
    def ordinal(self) -> int:
        """Of a pod of a stateful set; -1 for others."""
        number = self.name.rpartition("-")[2]
        return int(number) if number.isdecimal() else -1

    @property
    def pool(self) -> tuple[str, str]:
        """Role and model."""
        return self.labels.get(ROLE_LABEL, ""), self.labels.get(MODEL_LABEL, "")


class Pods:
    """The pods with one of `roles` in release `instance`. Errors: those of `Connection.answer`."""

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        instance: str,
        roles: Collection[str] = ROLES,
    ) -> None:
        self.namespace = namespace
        self._connection = connection
        self._instance = instance
        self._roles = roles
        self._turn = asyncio.Lock()

    async def list(self) -> list[Pod]:
        """All of them, by name. Errors: InvalidRequest when there are none."""
        selector = f"{INSTANCE_LABEL}={self._instance},{ROLE_LABEL}"
        query = {"labelSelector": selector, "limit": str(PODS_MAX)}
        listed = await self._ask(Call("list", "", "pods", self.namespace, query=query))
        items = listed.get("items")
        if not isinstance(items, list) or _part(listed, "metadata").get("continue"):
            raise BadAnswer(f"the list of pods has no items, or more than {PODS_MAX}")
        pods = [pod for pod in map(read_pod, items) if pod.labels.get(ROLE_LABEL) in self._roles]
        if not pods:
            raise InvalidRequest(
                f"namespace {self.namespace} has no pods with {selector} of"
                f" {', '.join(sorted(self._roles))}: is the release right?"
            )
        return sorted(pods, key=lambda pod: pod.name)

    async def delete(self, pod: Pod) -> None:
        """Kill it without grace. One that has gone meanwhile is no error."""
        body = _delete_options(pod, gracePeriodSeconds=0)
        await self._remove(Call("delete", "", "pods", self.namespace, pod.name, body=body))

    async def evict(self, pod: Pod) -> None:
        """Ask it to leave, as a node drain does. Errors: ApiError 429: a budget forbids it."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": self.namespace},
            "deleteOptions": _delete_options(pod),
        }
        await self._remove(Call("create", "", "pods/eviction", self.namespace, pod.name, body=body))

    async def _remove(self, call: Call) -> None:
        try:
            await self._ask(call)
        except ApiError as exc:  # a conflict: the name belongs to another pod by now
            if exc.code not in (GONE, CONFLICT):
                raise

    async def _ask(self, call: Call) -> Json:
        async with self._turn:
            return await self._connection.answer(call)


def read_pod(item: Any) -> Pod:
    """A Pod as JSON -> what we need of it. Errors: BadAnswer."""
    meta, spec, status = (_part(item, key) for key in ("metadata", "spec", "status"))
    name, labels = meta.get("name"), _part(meta, "labels")
    if not isinstance(name, str) or not name:
        raise BadAnswer("a pod has no name")
    ip, port = status.get("podIP"), _port(spec)
    address = ""
    if isinstance(ip, str) and ip and port:
        with contextlib.suppress(BadAnswer):
            address = join_host_port(ip, port)
    owners = [_part(one, "") for one in _list(meta, "ownerReferences")]
    owner = next((str(one.get("uid")) for one in owners if one.get("controller")), "")
    return Pod(
        name,
        str(meta.get("uid", "")),
        owner,
        str(spec.get("nodeName", "")),
        address,
        {str(key): str(value) for key, value in labels.items()},
        _waits(meta, status),
    )


def _waits(meta: Json, status: Json) -> str:
    if meta.get("deletionTimestamp"):
        return LEAVING
    conditions = [_part(one, "") for one in _list(status, "conditions")]
    ready = next((one for one in conditions if one.get("type") == "Ready"), {})
    if ready.get("status") == "True":
        return ""
    why = ready.get("reason") or status.get("reason") or status.get("phase") or "unknown"
    return f"is not ready: {str(why)[:80]}"


def _port(spec: Json) -> int | None:
    for container in _list(spec, "containers"):
        for port in _list(_part(container, ""), "ports"):
            number = _part(port, "").get("containerPort")
            if _part(port, "").get("name") == PORT_NAME and isinstance(number, int):
                return number
    return None


def _delete_options(pod: Pod, **more: Any) -> Json:
    meta = {"apiVersion": "v1", "kind": "DeleteOptions", **more}
    return {**meta, "preconditions": {"uid": pod.uid}} if pod.uid else meta


def _part(item: Any, key: str) -> Json:
    """The object under `key` (empty: `item` itself), {} where there is none."""
    found = item.get(key) if key and isinstance(item, Mapping) else item
    return found if isinstance(found, Mapping) else {}


def _list(item: Json, key: str) -> Sequence[Any]:
    found = item.get(key)
    return found if isinstance(found, list) else ()

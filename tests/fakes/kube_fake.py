"""A Kubernetes API server over real HTTP (kmock), with the failures that real ones have.

It serves any namespaced resource: list, watch, get, create, update, patch, delete, evict, with
resource versions, optimistic concurrency, bookmarks and a history that can be forgotten. Whatever
it holds or serves was checked against the schemas of the oldest and newest Kubernetes we support;
so was what a client sent.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import kmock
import kubernetes_validate
from aiohttp import web

from fakes import mesh_fake
from proa.cluster.api import ApiAccess, load_api

KUBERNETES = ("1.29", "1.36")
NAMESPACE = "models"
USER = f"system:serviceaccount:{NAMESPACE}:proa-frontend"
KINDS = {
    "endpointslices": "EndpointSlice",
    "leases": "Lease",
    "configmaps": "ConfigMap",
    "pods": "Pod",
    "events": "Event",
    "jobs": "Job",
    "nodes": "Node",
    **mesh_fake.KINDS,
}

OF_THE_CLUSTER = ("nodes",)

Object = dict[str, Any]


def valid(item: Object) -> Object:
    """`item`, which every supported Kubernetes would take."""
    if item["kind"] in mesh_fake.SCHEMAS:
        return mesh_fake.valid(item)
    for version in KUBERNETES:
        kubernetes_validate.validate(item, version, strict=True)
    return item


class FakeKube(kmock.KubernetesScaffold):
    """What tests steer: `tokens` that are known (None: any), verbs that are `denied`, answers
    that come `instead` (verb -> refusals, used up one by one), `gone_in_stream`. `on_delete`
    and `on_create` hear of what clients did; `discovery`: answers by path; `budgets`: pods that no
    disruption budget lets go."""

    def __attrs_post_init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []  # version, resource, type, object
        self.version = 100
        self.forgotten = 0
        self.watches: list[asyncio.Queue[bytes | Callable[[web.BaseRequest], None] | None]] = []
        self.tokens: set[str] | None = None
        self.denied: set[tuple[str, str]] = set()
        self.instead: dict[str, list[web.StreamResponse | Callable[[], web.Response]]] = {}
        self.gone_in_stream = False
        self.on_delete: Callable[[Object], None] = lambda _: None
        self.budgets: set[str] = set()
        self.on_create: Callable[[Object], None] = lambda _: None
        self.discovery: dict[str, Object] = {}
        self.seen: list[tuple[str, Mapping[str, str]]] = []

    # What tests do to the cluster.

    def put(self, item: Object) -> Object:
        """Create or replace an object; watchers hear of it."""
        resource, name = _resource_of(item), item["metadata"]["name"]
        kind = "MODIFIED" if (resource, name) in self.objects else "ADDED"
        self.version += 1
        kept = copy.deepcopy(item)
        kept["metadata"]["resourceVersion"] = str(self.version)
        if resource not in OF_THE_CLUSTER:
            kept["metadata"]["namespace"] = NAMESPACE
        kept["metadata"].setdefault("uid", f"uid-{self.version}")
        self.objects[resource, name] = valid(kept)
        self._happened(resource, kind, kept)
        return kept

    def delete(self, resource: str, name: str) -> None:
        self.version += 1
        item = copy.deepcopy(self.objects.pop((resource, name)))
        item["metadata"]["resourceVersion"] = str(self.version)
        self._happened(resource, "DELETED", item)

    def bookmark(self) -> None:
        """As the server sends about once a minute: nothing but a version."""
        self.version += 1
        told = {
            "metadata": {"resourceVersion": str(self.version)},
            "endpoints": None,
            "ports": None,
        }
        kind = {"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": ""}
        self.tell(_line("BOOKMARK", {**kind, **told}))

    def forget(self) -> None:
        """Compact the history: watching from before now is answered with 410."""
        self.version += 1
        self.history.clear()
        self.forgotten = self.version

    def tell(self, line: bytes) -> None:
        """Send these bytes to every watcher."""
        for watch in self.watches:
            watch.put_nowait(line)

    def end_watches(self) -> None:
        """End every watch as the server does at timeoutSeconds."""
        for watch in self.watches:
            watch.put_nowait(None)

    def reset_watches(self) -> None:
        """Drop every watcher's connection with a reset."""
        for watch in self.watches:
            watch.put_nowait(_abort)

    def count(self, verb: str) -> int:
        """How many calls with this verb came."""
        return sum(1 for seen, _ in self.seen if seen == verb)

    # What it serves.

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        verb, resource = _verb(request), str(request.resource.plural if request.resource else "")
        resource = "/".join(filter(None, (resource, request.subresource)))
        self.seen.append((verb, dict(request.params)))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return refusal(401, "Unauthorized")
        if self.instead.get(verb):
            found = self.instead[verb].pop(0)
            return found() if callable(found) else found
        if (verb, resource) in self.denied:
            group = request.resource.group if request.resource else ""
            return refusal(
                403,
                f'{resource}.{group} is forbidden: User "{USER}" cannot {verb} resource'
                f' "{resource}" in API group "{group}" in the namespace "{request.namespace}"',
            )
        if (verb, resource) == ("create", "pods/eviction"):
            return await self._evict(request)
        if request.url.path in self.discovery:
            return web.json_response(self.discovery[request.url.path])
        where = None if resource in OF_THE_CLUSTER else NAMESPACE
        if request.namespace != where or resource not in KINDS:
            return refusal(404, "the server could not find the requested resource")
        return await getattr(self, f"_{verb}")(request, resource)

    async def _list(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        matches = _selector(request.params.get("labelSelector", ""))
        found = [o for (r, _), o in sorted(self.objects.items()) if r == resource and matches(o)]
        # The items of a typed list carry neither kind nor apiVersion.
        items = [{k: v for k, v in o.items() if k not in ("kind", "apiVersion")} for o in found]
        assert request.resource is not None
        api_version = "/".join(filter(None, (request.resource.group, "v1")))
        meta = {"resourceVersion": str(self.version)}
        listed = {"kind": f"{KINDS[resource]}List", "apiVersion": api_version, "metadata": meta}
        return web.json_response(valid({**listed, "items": items}))

    async def _get(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        found = self.objects.get((resource, str(request.name)))
        if found is None:
            return refusal(404, f'{resource} "{request.name}" not found')
        return web.json_response(found)

    async def _create(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        item = valid(request.data)
        if (resource, item["metadata"]["name"]) in self.objects:
            return refusal(409, f'{resource} "{item["metadata"]["name"]}" already exists')
        kept = self.put(item)
        self.on_create(kept)
        return web.json_response(kept, status=201)

    async def _update(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        item, old = valid(request.data), self.objects.get((resource, str(request.name)))
        if old is None:
            return refusal(404, f'{resource} "{request.name}" not found')
        if item["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]:
            return refusal(409, "the object has been modified; please apply your changes to it")
        return web.json_response(self.put(item))

    async def _patch(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        """A merge patch: null removes."""
        old = self.objects.get((resource, str(request.name)))
        if request.headers.get("Content-Type") != "application/merge-patch+json":
            return refusal(415, "the body of the request was in an unknown format")
        if old is None:
            return refusal(404, f'{resource} "{request.name}" not found')
        return web.json_response(self.put(_merged(old, request.data)))

    async def _delete(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        return self._remove(resource, str(request.name), request.data or {})

    async def _evict(self, request: kmock.Request) -> web.StreamResponse:
        if request.name in self.budgets:
            return refusal(429, "Cannot evict pod as it would violate the pod's disruption budget.")
        return self._remove("pods", str(request.name), valid(request.data)["deleteOptions"])

    def _remove(self, resource: str, name: str, options: Object) -> web.StreamResponse:
        old = self.objects.get((resource, name))
        if old is None:
            return refusal(404, f'{resource} "{name}" not found')
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in (None, old["metadata"]["uid"]):
            return refusal(409, f"the UID in the precondition ({wanted}) does not match")
        self.delete(resource, name)
        self.on_delete(old)
        return web.json_response(_status(200, "") | {"status": "Success"})

    async def _watch(self, request: kmock.Request, resource: str) -> web.StreamResponse:
        since, raw = int(request.params["resourceVersion"]), request._raw_request
        assert raw is not None
        gone = f"too old resource version: {since} ({self.forgotten})"
        if since < self.forgotten and not self.gone_in_stream:
            return refusal(410, gone)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(raw)
        if since < self.forgotten:
            await response.write(_line("ERROR", _status(410, gone)))
            return response
        queue: asyncio.Queue[Any] = asyncio.Queue()
        matches = _selector(request.params.get("labelSelector", ""))
        for version, its, kind, item in self.history:
            if version > since and its == resource and matches(item):
                queue.put_nowait(_line(kind, item))
        self.watches.append(queue)
        try:
            while (item := await queue.get()) is not None:
                if callable(item):
                    item(raw)
                    break
                await response.write(item)
        except ConnectionError:
            pass
        finally:
            self.watches.remove(queue)
        return response

    def _happened(self, resource: str, kind: str, item: Object) -> None:
        self.history.append((self.version, resource, kind, item))
        if resource == "endpointslices":
            self.tell(_line(kind, item))


@asynccontextmanager
async def fake_kube(tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeKube]:
    """An API server on loopback; errors of the fake itself fail the test."""

    class Listening(aiohttp.test_utils.RawTestServer):
        start_server = functools.partialmethod(
            aiohttp.test_utils.RawTestServer.start_server, ssl=tls
        )

    async with FakeKube(strict=True) as kube, kmock.Server(kube, server_cls=Listening):
        yield kube
        kube.end_watches()


def kubeconfig(folder: Path, url: str, *, token: str = "t1") -> ApiAccess:
    """Access to `url` by a kubeconfig in `folder`; its token is in the file token there."""
    (folder / "token").write_text(token, encoding="utf-8")
    text = {
        "current-context": "c",
        "contexts": [
            {"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "models"}}
        ],
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(text), encoding="utf-8")
    return load_api({"KUBECONFIG": str(folder / "kubeconfig")})


def refusal(code: int, message: str, **headers: str) -> web.Response:
    """A Status object, as every refusal of a real server."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response(_status(code, message), status=code, headers=named)


def endpoint(pod: str, ip: str, *, node: str | None = "n1", **conditions: bool | None) -> Object:
    """One entry of a slice; conditions: ready, serving, terminating."""
    found: Object = {"addresses": [ip], "conditions": conditions}
    if node:
        found["nodeName"] = node
    found["targetRef"] = {"kind": "Pod", "namespace": NAMESPACE, "name": pod, "uid": f"uid-{pod}"}
    return found


def endpoint_slice(
    name: str, *endpoints: Object, role: str = "worker", model: str = "digits", instance: str = "r"
) -> Object:
    """A slice as the endpointslice controller writes it for one of our Services."""
    labels = {
        "app.kubernetes.io/instance": instance,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "kubernetes.io/service-name": name.rpartition("-")[0],
        "service.kubernetes.io/headless": "",
        "proa.dev/role": role,
    }
    ips = [e["addresses"][0] for e in endpoints]
    # Without endpoints the controller writes null for both lists.
    ports = [
        {"name": n, "port": p, "protocol": "TCP"} for n, p in (("admin", 9090), ("grpc", 8001))
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": labels | ({"proa.dev/model": model} if model else {})},
        "addressType": "IPv6" if any(":" in ip for ip in ips) else "IPv4",
        "endpoints": list(endpoints),
        "ports": ports,
    }


def pod(name: str, port: int, *, role: str, node: str = "n1", ready: bool = True) -> Object:
    """A pod of release `r` on loopback, as the kubelet reports it."""
    labels = {"app.kubernetes.io/instance": "r", "proa.dev/role": role}
    if "worker" in role:
        labels["proa.dev/model"] = "digits"
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": role, "controller": True}
    ports = [{"name": "admin", "containerPort": 9090}, {"name": "grpc", "containerPort": port}]
    condition = {"type": "Ready", "status": str(ready), "reason": "" if ready else "NotYet"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels,
            "ownerReferences": [{**owner, "uid": f"uid-{role}"}],
        },
        "spec": {"nodeName": node, "containers": [{"name": role, "image": "x", "ports": ports}]},
        "status": {"podIP": "127.0.0.1", "phase": "Running", "conditions": [condition]},
    }


def _verb(request: kmock.Request) -> str:
    other = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    if request.method.value in other:
        return other[request.method.value]
    verbs = {"LIST": "list", "WATCH": "watch", "FETCH": "get", "CREATE": "create"}
    return verbs[request.action.value] if request.action else request.method.value.lower()


def _resource_of(item: Object) -> str:
    return next(resource for resource, kind in KINDS.items() if kind == item["kind"])


def _selector(text: str) -> Callable[[Object], bool]:
    """`a=b,c`: label a is b, label c is there."""
    wanted = [part.partition("=") for part in text.split(",") if part]

    def matches(item: Object) -> bool:
        labels = item["metadata"].get("labels", {})
        return all(k in labels and (not eq or labels[k] == v) for k, eq, v in wanted)

    return matches


def _status(code: int, message: str) -> Object:
    """Not checked: kubernetes_validate looks for Status under a name that it does not have."""
    status = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure"}
    return {**status, "message": message, "code": code}


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _merged(old: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    found = copy.deepcopy(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _abort(raw: web.BaseRequest) -> None:
    if raw.transport is not None:
        raw.transport.abort()

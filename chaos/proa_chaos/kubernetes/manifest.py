"""An experiment as objects of Kubernetes: a Job, and the rights that it needs and no more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from proa import __version__
from proa.errors import InvalidRequest
from proa_chaos.experiment import Experiment, Workload
from proa_chaos.kubernetes.mesh import GROUP, by_mesh, resource
from proa_chaos.runner import READY_S_MAX, SLACK_S

Object = dict[str, Any]

NAME_CHARS_MAX = 63
RBAC = "rbac.authorization.k8s.io"
START_S = 60  # image pull, Lease, report
ROLL_BACK_S = 60
KEPT_S = 86_400  # a finished Job, for its log
READER = "reader"
FOLDER, FILE = "/etc/proa/chaos", "experiment.yaml"
_USER = 65532
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?")


@dataclass(frozen=True)
class Place:
    """Where it runs. `release`: of the chart; `fullname`: what its objects' names begin with, if
    not as the chart makes it. Secrets: a token with `faults: true` (key `token`); certificates of
    the services; ca.crt of the frontends (and tls.crt, tls.key where clients show certificates);
    passwords of the store's servers (key `reader`).
    """

    release: str
    namespace: str
    image: str
    fullname: str | None = None
    token_secret: str | None = None
    tls_secret: str | None = None
    client_tls_secret: str | None = None
    users_secret: str | None = None
    seed: int = 0
    force: bool = False

    @property
    def full(self) -> str:
        default = self.release if "proa" in self.release else f"{self.release}-proa"
        return self.fullname or default


def manifest(experiment: Experiment, text: str, place: Place) -> list[Object]:
    """The objects, in the order in which they must be made. `text`: of the experiment's file.

    Errors: InvalidRequest for what no Job can have.
    """
    for what, name in (("--release", place.release), ("--namespace", place.namespace)):
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{what} {name!r} is not a name of Kubernetes")
    if place.users_secret and experiment.workload.store is None:
        raise InvalidRequest("--users-secret: is for experiments on a store")
    if experiment.workload.inputs is not None:
        raise InvalidRequest("workload.inputs: a Job does not have that file; leave it out")
    name = f"{place.full}-chaos-{experiment.name}"
    if len(name) > NAME_CHARS_MAX or not re.fullmatch(r"[a-z0-9][-a-z0-9]*[a-z0-9]", name):
        raise InvalidRequest(
            f"the Job's name would be {name!r}: at most {NAME_CHARS_MAX} of a-z, 0-9 and `-`"
        )
    meta = {"name": name, "namespace": place.namespace, "labels": _labels(place)}
    cluster = _cluster_objects(experiment, place, name)
    account = {"kind": "ServiceAccount", "name": name, "namespace": place.namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": meta,
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": meta,
            "rules": rules(experiment, place.release, name),
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [account],
        },
        *cluster,
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {FILE: text}},
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": meta,
            "spec": _job(experiment, place, name),
        },
    ]


def cordons(experiment: Experiment) -> bool:
    """Whether it needs rights on the nodes of the cluster."""
    return any(fault.parameters.cordon for fault in experiment.faults)


def _cluster_objects(experiment: Experiment, place: Place, name: str) -> list[Object]:
    """What goes beyond the namespace: nothing, unless it cordons."""
    if not cordons(experiment):
        return []
    meta = {"name": f"{place.namespace}-{name}", "labels": _labels(place)}
    account = {"kind": "ServiceAccount", "name": name, "namespace": place.namespace}
    role = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": meta}
    binding = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": meta}
    ref = {"apiGroup": RBAC, "kind": "ClusterRole", "name": meta["name"]}
    return [
        role | {"rules": [_rule("", "nodes", ["get", "list", "patch"])]},
        binding | {"roleRef": ref, "subjects": [account]},
    ]


def rules(experiment: Experiment, release: str, job: str) -> list[Object]:
    """What the Job's Role grants: of pods, only to delete or evict them if the experiment does."""
    ours = [fault for fault in experiment.faults if not by_mesh(fault)]
    kills = {fault.parameters.how for fault in ours if fault.action in ("kill", "kill-shard")}
    kills |= {"evict" for fault in ours if fault.action == "drain"}
    verbs = ["list", "delete"] if kills - {"evict"} else ["list"]
    found = [_rule("", "pods", verbs)]
    if "evict" in kills:
        found.append(_rule("", "pods/eviction", ["create"]))
    kinds = {resource(fault) for fault in experiment.faults if by_mesh(fault)}
    found += [_rule(GROUP, kind, ["create", "get", "delete"]) for kind in sorted(kinds)]
    return [
        *found,
        _rule("", "events", ["create"]),
        # Creation cannot be granted by name.
        _rule("coordination.k8s.io", "leases", ["create"]),
        _rule("coordination.k8s.io", "leases", ["get", "update"], f"{release}-chaos"),
        _rule("batch", "jobs", ["get", "patch"], job),
    ]


def deadline_s(workload: Workload) -> int:
    """After so long the cluster stops the Job."""
    phases_s = workload.before_s + workload.during_s + workload.after_s + workload.recovery_s
    return round(phases_s + READY_S_MAX + SLACK_S) + START_S


def _rule(group: str, resource: str, verbs: list[str], name: str | None = None) -> Object:
    found: Object = {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    return found | ({"resourceNames": [name]} if name else {})


def _labels(place: Place) -> Object:
    """With those that the chart's network policies know."""
    return {
        "app.kubernetes.io/name": "proa",
        "app.kubernetes.io/instance": place.release,
        "app.kubernetes.io/component": "chaos",
        "app.kubernetes.io/version": __version__,
        "app.kubernetes.io/part-of": "proa",
        "app.kubernetes.io/managed-by": "proa-chaos",
    }


def _job(experiment: Experiment, place: Place, name: str) -> Object:
    return {
        "backoffLimit": 0,
        "activeDeadlineSeconds": deadline_s(experiment.workload),
        "ttlSecondsAfterFinished": KEPT_S,
        "template": {
            "metadata": {"labels": _labels(place)},
            "spec": _pod(place, name, _env_of(experiment, place)),
        },
    }


def _pod(place: Place, name: str, env: dict[str, str]) -> Object:
    mounts: list[Object] = [
        {"name": "experiment", "mountPath": FOLDER, "readOnly": True},
        {"name": "models", "mountPath": "/etc/proa/models", "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of the pod
    ]
    volumes: list[Object] = [
        {"name": "experiment", "configMap": {"name": name}},
        {"name": "models", "configMap": {"name": f"{place.full}-models", "optional": True}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
    for kind, secret in _secrets(place).items():
        mounts.append({"name": kind, "mountPath": f"/etc/proa/{kind}", "readOnly": True})
        source: Object = {"secretName": secret, "defaultMode": 0o440}
        if kind == "users":  # the other is of agents, who write
            source["items"] = [{"key": READER, "path": READER}]
        volumes.append({"name": kind, "secret": source})
    return {
        "serviceAccountName": name,
        "automountServiceAccountToken": True,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": ROLL_BACK_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "chaos",
                "image": place.image,
                "args": ["chaos"],
                "env": _env(place, name, env),
                "resources": {
                    "requests": {"cpu": "250m", "memory": "256Mi"},
                    "limits": {"memory": "1Gi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "runAsNonRoot": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }


def _env_of(experiment: Experiment, place: Place) -> dict[str, str]:
    """What it needs to know for its faults and its workload."""
    found = {"PROA_CHAOS_NODES": str(cordons(experiment)).lower()}
    if experiment.workload.store is not None:
        address = f"{place.full}-coordinator.{place.namespace}.svc:8021"
        found["PROA_CHAOS_STORE"] = address
        if place.users_secret:
            found["PROA_CHAOS_READER_USER"] = READER
    return found


def _secrets(place: Place) -> dict[str, str]:
    given = {
        "token": place.token_secret,
        "tls": place.tls_secret,
        "client-tls": place.client_tls_secret,
        "users": place.users_secret,
    }
    return {kind: secret for kind, secret in given.items() if secret}


def _env(place: Place, name: str, more: dict[str, str]) -> list[Object]:
    values = {
        "HOME": "/tmp",  # noqa: S108 - of the pod
        "PROA_CHAOS_FILE": f"{FOLDER}/{FILE}",
        "PROA_CHAOS_NAMESPACE": place.namespace,
        "PROA_CHAOS_INSTANCE": place.release,
        "PROA_CHAOS_ADDRESS": f"{place.full}-frontend.{place.namespace}.svc:8001",
        "PROA_CHAOS_SPECS": "/etc/proa/models",
        "PROA_CHAOS_JOB": name,
        "PROA_CHAOS_SEED": str(place.seed),
        "PROA_CHAOS_FORCE": str(place.force).lower(),
        **more,
    }
    secrets = {
        "token": ("PROA_CHAOS_TOKEN_FILE", "/etc/proa/token/token"),
        "tls": ("PROA_CHAOS_TLS_DIR", "/etc/proa/tls"),
        "client-tls": ("PROA_CHAOS_CLIENT_TLS_DIR", "/etc/proa/client-tls"),
        "users": ("PROA_CHAOS_READER_PASSWORD_FILE", f"/etc/proa/users/{READER}"),
    }
    values |= dict(secrets[kind] for kind in _secrets(place))
    own = {"name": "PROA_CHAOS_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    return [{"name": key, "value": value} for key, value in values.items()] + [own]

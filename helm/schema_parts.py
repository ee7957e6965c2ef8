"""The chart's own keys as JSON Schema draft-07: values.schema.json is made of them and of the spec.

What Kubernetes defines (env, affinity, ...) is passed on as it is; of it only the type is checked.
Everything of ours is closed: an unknown key is an error.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from proa.decoder.settings import DecoderSettings
from proa.encoder.settings import EncoderSettings
from proa.frontend.settings import FrontendSettings
from proa.runtime.settings import settings_of
from proa.spec.schema import spec_schema
from proa.store.settings import AgentSettings, CoordinatorSettings
from proa.worker.settings import WorkerSettings

Schema = dict[str, Any]

SETTINGS = {
    "frontend": FrontendSettings,
    "encoder": EncoderSettings,
    "decoder": DecoderSettings,
    "worker": WorkerSettings,
    "store": AgentSettings,
    "coordinator": CoordinatorSettings,
}
# What the templates set themselves, or what would contradict the pods: ports, places, discovery.
NOT_OFFERED = frozenset(
    (
        "ADMIN_PORT",
        "CLIENT_TLS_DIR",
        "COORDINATOR",
        "CRASH_AT",
        "DECODERS",
        "DISCOVERY",
        "DNS_PREFIX",
        "DNS_SUFFIX",
        "DRAIN_S",
        "ENCODERS",
        "FAULTS",
        "HOLDER",
        "HOST",
        "HTTP_PORT",
        "INSTANCE",
        "K",
        "METRICS_PORT",
        "NAMESPACE",
        "POD",
        "PORT",
        "R",
        "READER_PASSWORD_FILE",
        "READER_USER",
        "READY_WHEN",
        "REPOSITORY",
        "RESTART_LEASE",
        "SCRATCH",
        "SECRETS",
        "SERVER",
        "SERVER_PASSWORD_FILE",
        "SERVER_USER",
        "SHARD",
        "SHARDS",
        "SPECS",
        "START_S_MAX",
        "STATE",
        "THREADS",
        "TLS_DIR",
        "TOKENS",
        "TRACE_URL",
        "TRITON",
        "WORKERS",
    )
)

TEXT: Schema = {"type": "string", "maxLength": 4096}
NAME: Schema = {"type": "string", "pattern": "^$|^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
GIVEN_NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {
    "type": ["string", "number"],
    "pattern": "^[0-9]+(\\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$",
}
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT, "maxItems": 100}
TEXTS_BY_NAME: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
# Those that selectors use are not the user's to change.
OWN_LABELS: Schema = {
    **TEXTS_BY_NAME,
    "propertyNames": {"not": {"pattern": "^(app\\.kubernetes\\.io|proa\\.dev)/"}},
}
NAMED_OBJECTS: Schema = {
    "type": "array",
    "items": {"type": "object", "required": ["name"], "properties": {"name": TEXT}},
    "maxItems": 100,
}
SHA256: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
BYTES: Schema = {"type": "integer", "minimum": 1, "maximum": 1 << 40}
HTTP_URL: Schema = {"type": "string", "pattern": "^https?://[^\\s]+$", "maxLength": 4096}
INT_OR_PERCENT: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": 1000},
        {"type": "string", "pattern": "^(100|[1-9]?[0-9])%$"},
    ]
}


def number(least: float, most: float, kind: str = "integer") -> Schema:
    return {"type": kind, "minimum": least, "maximum": most}


def choice(*words: str) -> Schema:
    return {"enum": list(words)}


def closed(
    keys: Mapping[str, Schema], *, required: tuple[str, ...] = (), about: str = ""
) -> Schema:
    """A mapping with these keys and no others."""
    found: Schema = {"type": "object", "additionalProperties": False, "properties": dict(keys)}
    if required:
        found["required"] = list(required)
    if about:
        found["description"] = about
    return found


def complete(schema: Schema) -> Schema:
    """`schema` of values over the chart's defaults: `null` takes a default away, and then says
    which key is missing, where a template could not do without it. Of `settings` all are optional.
    """
    if "properties" not in schema:
        return schema
    keys = {k: v if k == "settings" else complete(v) for k, v in schema["properties"].items()}
    needed = [key for key in keys if key != "settings" and _is_needed(keys[key])]
    return {**schema, "properties": keys, "required": needed}


def _is_needed(schema: Schema) -> bool:
    """Not where nothing is as good as null, an empty text or an empty mapping."""
    if "anyOf" in schema:
        return all(_is_needed(arm) for arm in schema["anyOf"])
    kinds = schema.get("type", [])
    if "null" in kinds or (kinds == "object" and "properties" not in schema):
        return False
    if "string" in kinds:
        return schema.get("minLength", 0) > 0 or re.search(schema.get("pattern", ""), "") is None
    return True


def said(schema: Schema, about: str) -> Schema:
    """`schema` with a description, which the chart's README shows."""
    return {**schema, "description": about}


def resources() -> Schema:
    amounts: Schema = {"type": "object", "additionalProperties": QUANTITY}
    return closed({"requests": amounts, "limits": amounts})


def camel(env: str) -> str:
    """queueMax, of PROA_FRONTEND_QUEUE_MAX."""
    first, *rest = env.split("_")[2:]
    return first.lower() + "".join(word.capitalize() for word in rest)


def offered(service: str) -> dict[str, str]:
    """Variable by camel-case name: what `settings` of a component may set."""
    return {
        camel(one.env): one.env
        for one in settings_of(SETTINGS[service]).values()
        if one.env.split("_", 2)[2] not in NOT_OFFERED
    }


def settings(service: str) -> Schema:
    """The settings of a service as far as `settings` may set them, with their limits."""
    hints = get_type_hints(SETTINGS[service])
    kinds = {int: "integer", float: "number", bool: "boolean"}
    keys: dict[str, Schema] = {}
    for field, one in settings_of(SETTINGS[service]).items():
        if camel(one.env) not in offered(service):
            continue
        schema: Schema = {"type": kinds.get(_plain(hints[field]), "string"), "description": one.why}
        if one.minimum is not None:
            schema["minimum"] = one.minimum
        if one.maximum is not None:
            schema["maximum"] = one.maximum
        if one.choices is not None:
            schema["enum"] = list(one.choices)
        keys[camel(one.env)] = schema
    return closed(keys)


def _plain(hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        return next(arm for arm in get_args(hint) if arm is not type(None))
    return hint


def pod_keys(service: str) -> dict[str, Schema]:
    """What all components have."""
    return {
        "replicas": number(0, 1000),
        "resources": resources(),
        "settings": settings(service),
        "drainSeconds": number(0, 600),
        "extraEnv": NAMED_OBJECTS,
        "extraVolumes": NAMED_OBJECTS,
        "extraVolumeMounts": NAMED_OBJECTS,
        "podAnnotations": TEXTS_BY_NAME,
        "podLabels": OWN_LABELS,
        "nodeSelector": TEXTS_BY_NAME,
        "tolerations": OBJECTS,
        "affinity": OBJECT,
        "priorityClassName": NAME,
        "runtimeClassName": NAME,
    }


def pool() -> Schema:
    """`workers`, and what models[].workers and models[].parityWorkers may replace of it."""
    slice_name: Schema = {"type": "string", "pattern": "^$|^[0-9]+g\\.[0-9]+gb([.+][a-z0-9.]+)?$"}
    return closed(
        pod_keys("worker")
        | {
            "mode": choice("cpu", "gpu", "mig"),
            "gpu": closed(
                {
                    "count": number(1, 64),
                    "product": TEXT,
                    "migProfile": slice_name,
                    "runtimeClassName": NAME,
                }
            ),
            "threads": number(1, 1024),
            "startSeconds": number(1, 3600),
            "rollingUpdate": closed(
                {
                    "maxSurge": INT_OR_PERCENT,
                    "maxUnavailable": {"anyOf": [{"type": "null"}, INT_OR_PERCENT]},
                }
            ),
            "topologySpread": closed(
                {
                    "enabled": FLAG,
                    "topologyKey": {"type": "string", "minLength": 1, "maxLength": 316},
                    "whenUnsatisfiable": choice("ScheduleAnyway", "DoNotSchedule"),
                    "maxSkew": number(1, 100),
                }
            ),
            "storage": closed(
                dict.fromkeys(("models", "repository", "scratch", "tmp", "shm"), QUANTITY)
            ),
        }
    )


def store() -> Schema:
    """The embedding-parity store. k, r and shards have the limits of its coordinator."""
    others = {"replicas", "drainSeconds", "affinity", "extraVolumes", "extraVolumeMounts"}

    def pod(service: str) -> dict[str, Schema]:
        return {key: value for key, value in pod_keys(service).items() if key not in others}

    spread = closed(
        {
            "topologyKey": {"type": "string", "minLength": 1, "maxLength": 316},
            "whenUnsatisfiable": choice("ScheduleAnyway", "DoNotSchedule"),
        }
    )
    volume = closed({"enabled": FLAG, "size": QUANTITY, "storageClassName": NAME})
    bucket = closed(
        {
            "enabled": FLAG,
            "endpoint": {"anyOf": [{"const": ""}, HTTP_URL]},
            "region": TEXT,
            "existingSecret": NAME,
        }
    )
    return closed(
        pod("store")
        | {
            "enabled": FLAG,
            "image": TEXT,
            "k": number(1, 16),
            "r": number(1, 2),
            "shards": number(2, 64),
            "memoryMiB": number(16, 1 << 22),
            "cpu": QUANTITY,
            "auth": closed({"existingSecret": NAME}),
            "spread": spread,
            "persistence": volume,
            "snapshots": closed({"s3": bucket}),
            "coordinator": closed(pod("coordinator") | {"replicas": number(1, 10)}),
        }
    )


def source() -> Schema:
    """models[].source: exactly one of its keys."""
    image = closed(
        {
            "ref": said({**TEXT, "minLength": 1}, "image with `cp`; it runs as user 65532"),
            "path": said({**TEXT, "pattern": "^/"}, "folder in the image"),
        },
        required=("ref", "path"),
        about="from an image of yours, by init container",
    )
    pvc = closed(
        {
            "claimName": said(GIVEN_NAME, "PersistentVolumeClaim, mounted read-only"),
            "path": said(TEXT, "folder in the volume; left out: its root"),
        },
        required=("claimName",),
        about="from a volume",
    )
    http = closed(
        {
            "url": said(HTTP_URL, "archive of the files: .tar, .tar.gz or .zip"),
            "sha256": said(SHA256, "hash of the archive"),
            "bytesMax": said(BYTES, "largest archive, in bytes"),
        },
        required=("url", "sha256"),
        about="from a web server",
    )
    s3 = closed(
        {
            "url": said({**TEXT, "pattern": "^s3://[^/\\s]+/[^\\s]+$"}, "s3://BUCKET/KEY"),
            "sha256": said(SHA256, "hash of the archive"),
            "bytesMax": said(BYTES, "largest archive, in bytes"),
            "endpoint": said(HTTP_URL, "S3 endpoint"),
            "region": said(TEXT, "S3 region"),
            "existingSecret": said(NAME, "Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"),
        },
        required=("url", "sha256"),
        about="from an object store",
    )
    builtin = said(choice("digits"), "a model that the worker image has")
    found = closed({"builtin": builtin, "image": image, "pvc": pvc, "http": http, "s3": s3})
    return {**found, "minProperties": 1, "maxProperties": 1}


def models() -> Schema:
    name: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
    one = closed(
        {
            "name": said(name, "the name that clients ask for"),
            "spec": said(spec_schema(), "`spec` of a CodedModel file, see docs/spec.md"),
            "source": said(source(), "where the files named in `spec` come from: one of these"),
            "faults": said(FLAG, "add the fault injection model; needs chaos.enabled"),
            "workers": said({"$ref": "#/definitions/pool"}, "replaces values of `workers`"),
            "parityWorkers": said(
                {"$ref": "#/definitions/pool"},
                "with pool dedicated: replaces values of its workers",
            ),
        },
        required=("name", "spec", "source"),
    )
    return {"type": "array", "items": one, "maxItems": 100}


def image() -> Schema:
    one = closed(
        {
            "repository": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._/-]*$"},
            "tag": {"type": "string", "pattern": "^$|^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"},
            "digest": {"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"},
        }
    )
    return closed(
        {
            "registry": TEXT,
            "pullPolicy": choice("Always", "IfNotPresent", "Never"),
            "pullSecrets": {"type": "array", "items": GIVEN_NAME, "maxItems": 20},
            "services": one,
            "worker": one,
            "workerGpu": one,
        }
    )


def frontend() -> Schema:
    service = closed(
        {"type": choice("ClusterIP", "NodePort", "LoadBalancer"), "annotations": TEXTS_BY_NAME}
    )
    return closed(pod_keys("frontend") | {"readyWhen": choice("all", "any"), "service": service})


def chart_keys() -> dict[str, Schema]:
    """Every top-level key that is not in schema_extras."""
    roles = ("frontend", "encoder", "decoder", "worker", "store", "coordinator")
    accounts = dict.fromkeys(roles, NAME)
    domain: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
    return {
        "nameOverride": {"type": "string", "pattern": "^$|^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "fullnameOverride": {**TEXT, "maxLength": 63},
        # Charts that include this one share `global`: keys of theirs are none of our business.
        "global": {"type": "object", "properties": {"imageRegistry": TEXT}},
        "image": image(),
        "models": models(),
        "workers": pool(),
        "frontend": frontend(),
        "encoder": closed(pod_keys("encoder") | {"enabled": FLAG}),
        "decoder": closed(pod_keys("decoder") | {"enabled": FLAG}),
        "store": store(),
        "discovery": closed({"mode": choice("kubernetes", "dns"), "clusterDomain": domain}),
        "serviceAccount": closed(
            {"create": FLAG, "annotations": TEXTS_BY_NAME, "names": closed(accounts)}
        ),
        "rbac": closed({"create": FLAG}),
        "podSecurity": closed({"podContext": OBJECT, "containerContext": OBJECT}),
        "logLevel": choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "logFormat": choice("text", "json"),
        "priorityClassName": NAME,
        "apiVersions": {"type": "array", "items": TEXT, "maxItems": 100},
        "extraObjects": {"type": "array", "items": {"type": ["object", "string"]}, "maxItems": 100},
        "chaos": chaos(),
    }


def chaos() -> Schema:
    word = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$"}
    seed = number(0, 2**31 - 1)
    experiment = closed(
        {"name": word, "file": {"type": "string", "maxLength": 1 << 16}, "seed": seed}
        | {"force": FLAG},
        required=("name", "file"),
    )
    return closed(
        {
            "enabled": FLAG,
            "nodes": FLAG,
            "chaosMesh": FLAG,
            "experiments": {"type": "array", "items": experiment, "maxItems": 100},
            "token": closed({"existingSecret": NAME, "key": TEXT}),
        }
    )

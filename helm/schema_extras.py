"""Schemas of the sections for networks, certificates, monitoring, scaling and tests."""

from __future__ import annotations

from schema_parts import (
    FLAG,
    HTTP_URL,
    NAME,
    OBJECTS,
    TEXT,
    TEXTS_BY_NAME,
    Schema,
    choice,
    closed,
    number,
)

# As cert-manager and Prometheus read them: 2160h, 1h30m, 15s.
DURATION: Schema = {"type": "string", "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", "minLength": 2}
KEY: Schema = {"type": "string", "pattern": "^[-._a-zA-Z0-9]{1,253}$"}
PORTS: Schema = {"type": "array", "items": number(1, 65535), "minItems": 1, "maxItems": 20}
DNS_NAMES: Schema = {
    "type": "array",
    "items": {"type": "string", "pattern": "^(\\*\\.)?[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"},
    "maxItems": 100,
}


def tls() -> Schema:
    """Certificates: cert-manager's, or given ones."""
    issuer = closed({"name": NAME, "kind": choice("Issuer", "ClusterIssuer"), "group": NAME})
    roles = ("frontend", "encoder", "decoder", "worker", "store", "client")
    return closed(
        {
            "enabled": FLAG,
            "clientAuth": FLAG,
            "clientDnsNames": DNS_NAMES,
            "certManager": closed(
                {
                    "enabled": FLAG,
                    "issuerRef": issuer,
                    "duration": DURATION,
                    "renewBefore": DURATION,
                }
            ),
            "existingSecrets": closed(dict.fromkeys(roles, NAME)),
        }
    )


def autoscaling() -> Schema:
    """Worker pools that follow their queue."""
    workers = closed(
        {
            "enabled": FLAG,
            "kind": choice("hpa", "keda"),
            "minReplicas": number(1, 1000),
            "maxReplicas": number(1, 1000),
            "queueDepthTarget": number(1, 1_000_000),
            "prometheusAddress": {"anyOf": [{"const": ""}, HTTP_URL]},
            "fallbackReplicas": {"anyOf": [{"type": "null"}, number(1, 1000)]},
            "scaleDownStabilizationSeconds": number(0, 3600),
        }
    )
    return closed({"workers": workers})


def network_policy() -> Schema:
    """Who may talk to whom."""
    return closed(
        {
            "enabled": FLAG,
            "clientsFrom": OBJECTS,
            "storeClientsFrom": OBJECTS,
            "prometheusFrom": OBJECTS,
            "dnsTo": OBJECTS,
            "apiServerTo": OBJECTS,
            "apiServerPorts": PORTS,
            "collectorTo": OBJECTS,
            "collectorPorts": PORTS,
            "fetchTo": OBJECTS,
            "fetchPorts": PORTS,
        }
    )


def monitoring() -> Schema:
    """What Prometheus and Grafana read."""
    rule = closed(
        {
            "enabled": FLAG,
            "labels": TEXTS_BY_NAME,
            "runbookUrl": {"anyOf": [{"const": ""}, HTTP_URL]},
            "availabilityPercent": number(1, 99.9999, "number"),
            "redundancyLostRatioMax": number(0, 3, "number"),
            "storeLagVersionsMax": number(1, 1_000_000),
        }
    )
    return closed(
        {
            "selector": TEXT,
            "podMonitor": closed({"enabled": FLAG, "labels": TEXTS_BY_NAME, "interval": DURATION}),
            "prometheusRule": rule,
            "dashboard": closed(
                {"enabled": FLAG, "labels": TEXTS_BY_NAME, "annotations": TEXTS_BY_NAME}
            ),
        }
    )


def tracing() -> Schema:
    """Where spans go. Credentials belong into headers: a URL is logged."""
    url: Schema = {**HTTP_URL, "pattern": "^https?://[^\\s@?#]+$"}
    return closed(
        {
            "endpoint": {"anyOf": [{"const": ""}, url]},
            "protocol": choice("http/protobuf", "grpc"),
            "workerEndpoint": {"anyOf": [{"const": ""}, url]},
            "sample": number(0, 1, "number"),
            "slowMs": number(0, 3_600_000, "number"),
            "headers": closed({"existingSecret": NAME, "key": KEY}),
        }
    )


def extras_schema() -> dict[str, Schema]:
    """Draft-07 schema of each section, by its key."""
    secret = closed({"existingSecret": NAME, "key": KEY})
    return {
        "tls": tls(),
        "auth": closed({"tokens": secret}),
        "autoscaling": autoscaling(),
        "podDisruptionBudget": closed({"enabled": FLAG}),
        "networkPolicy": network_policy(),
        "monitoring": monitoring(),
        "tracing": tracing(),
        "tests": closed({"enabled": FLAG, "token": secret}),
    }

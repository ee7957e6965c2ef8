"""Bad values are refused before anything is installed, and the message names them."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest

from helm.chart import SITE, Values, over, profile, render

MODEL: Values = {
    "name": "m",
    "source": {"builtin": "digits"},
    "spec": {
        "model": {
            "program": "m.pt2",
            "inputs": [{"name": "x", "dtype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}],
        }
    },
}


def model(**keys: Any) -> Values:
    return {"models": [over(MODEL, keys)]}


def redundancy(**keys: Any) -> Values:
    return model(spec={"redundancy": keys})


def refusal(values: Values, **release: str) -> str:
    with pytest.raises(helm_python.HelmError) as caught:
        render(over(profile("default"), values), **release)
    return str(caught.value)


# (values, what the schema's message names)
BY_SCHEMA: dict[str, tuple[Values, str]] = {
    "k too large": (redundancy(k=17), "/models/0/spec/redundancy/k"),
    "k not a number": (redundancy(k="two"), "/models/0/spec/redundancy/k"),
    "k of 0": (redundancy(k=0), "/models/0/spec/redundancy/k"),
    "r of 0": (redundancy(r=0), "/models/0/spec/redundancy/r"),
    "r too large": (redundancy(r=4), "/models/0/spec/redundancy/r"),
    "unknown policy": (redundancy(policy="hope"), "/models/0/spec/redundancy/policy"),
    "unknown coder": (redundancy(coder="xor"), "/models/0/spec/redundancy/coder"),
    "replica with k 2": (redundancy(coder="replica", k=2), "/models/0/spec/redundancy/k"),
    "sum with k 1": (redundancy(k=1), "/models/0/spec/redundancy/k"),
    "mean with r 2": (redundancy(coder="mean", r=2), "/models/0/spec/redundancy/r"),
    "parity without programs for k": (
        redundancy(policy="parity", k=3, parity={"2": ["p.pt2"]}),
        "/models/0/spec/redundancy/parity",
    ),
    "parity of copies": (
        redundancy(policy="parity", coder="replica", k=1),
        "/models/0/spec/redundancy",
    ),
    "misspelt spec key": (redundancy(polcy="auto"), "polcy"),
    "unknown dtype": (
        model(spec={"model": {"inputs": [{"name": "x", "dtype": "FP8", "shape": [4]}]}}),
        "/models/0/spec/model/inputs/0/dtype",
    ),
    "shape with 0": (
        model(spec={"model": {"inputs": [{"name": "x", "dtype": "FP32", "shape": [0]}]}}),
        "/models/0/spec/model/inputs/0/shape",
    ),
    "maxBatch of 0": (model(spec={"model": {"maxBatch": 0}}), "maxBatch"),
    "no spec": ({"models": [{"name": "m", "source": {"builtin": "digits"}}]}, "spec"),
    "no source": ({"models": [{"name": "m", "spec": MODEL["spec"]}]}, "source"),
    "unknown source": ({"models": [{**MODEL, "source": {"ftp": {}}}]}, "ftp"),
    "two sources": (
        {"models": [{**MODEL, "source": {"builtin": "digits", "pvc": {"claimName": "c"}}}]},
        "/models/0/source",
    ),
    "unknown built-in": ({"models": [{**MODEL, "source": {"builtin": "mnist"}}]}, "builtin"),
    "archive without a hash": (
        {"models": [{**MODEL, "source": {"http": {"url": "https://m.example/m.zip"}}}]},
        "sha256",
    ),
    "short hash": (
        {"models": [{**MODEL, "source": {"s3": {"url": "s3://b/k", "sha256": "abc"}}}]},
        "/models/0/source/s3/sha256",
    ),
    "name with capitals": (model(name="Digits"), "/models/0/name"),
    "name too long": (model(name="m" * 64), "/models/0/name"),
    "unknown key at the top": ({"replicas": 3}, "replicas"),
    "unknown key in a component": ({"frontend": {"replica": 3}}, "replica"),
    "unknown setting": ({"frontend": {"settings": {"queueMaximum": 1}}}, "queueMaximum"),
    "setting beyond its limit": ({"frontend": {"settings": {"queueMax": 0}}}, "queueMax"),
    "setting of the wrong type": ({"encoder": {"settings": {"callsMax": "many"}}}, "callsMax"),
    "setting that the chart sets": ({"frontend": {"settings": {"port": 1}}}, "port"),
    "unknown mode": ({"workers": {"mode": "tpu"}}, "/workers/mode"),
    "unknown discovery": ({"discovery": {"mode": "gossip"}}, "/discovery/mode"),
    "bad quantity": ({"frontend": {"resources": {"limits": {"memory": "lots"}}}}, "memory"),
    "bad digest": ({"image": {"services": {"digest": "md5:1"}}}, "digest"),
    "negative replicas": ({"encoder": {"replicas": -1}}, "/encoder/replicas"),
    "label of a selector": (
        {"frontend": {"podLabels": {"app.kubernetes.io/name": "x"}}},
        "invalid propertyName 'app.kubernetes.io/name'",
    ),
    "unknown log level": ({"logLevel": "loud"}, "/logLevel"),
    "chaos misspelt": ({"chaos": {"enable": True}}, "enable"),
}


@pytest.mark.parametrize("what", BY_SCHEMA)
def test_the_schema_refuses(what: str) -> None:
    values, named = BY_SCHEMA[what]
    message = refusal(values)
    assert "don't meet the specifications of the schema" in message
    assert named in message


# (values, what the message names)
BY_RULE: dict[str, tuple[Values, str]] = {
    "two models of one name": ({"models": [MODEL, MODEL]}, 'models[1].name: "m" stands here twice'),
    "model name too long for a Service": (model(name="m" * 60), "models[0].name: the Service"),
    "dedicated name too long": (
        model(name="m" * 42, spec={"redundancy": {"pool": "dedicated"}}),
        "models[0].name: the Service",
    ),
    "fewer parity programs than r": (
        redundancy(policy="parity", r=2, parity={"2": ["p.pt2"]}),
        "models[0] (m).spec.redundancy.parity: policy parity with r 2 needs 2 programs",
    ),
    "faults without chaos": (model(faults=True), "models[0] (m).faults"),
    "parity workers in a shared pool": (
        model(parityWorkers={"replicas": 2}),
        "models[0] (m).parityWorkers",
    ),
    "placement without coders": (
        over(redundancy(placement="pod"), {"encoder": {"enabled": False}}),
        "models[0] (m).spec.redundancy.placement",
    ),
    "mig without a profile": ({"workers": {"mode": "mig"}}, "workers.gpu.migProfile"),
    "profile without mig": (
        {"workers": {"gpu": {"migProfile": "1g.10gb"}}},
        "workers.gpu.migProfile: only with mode mig",
    ),
    "an update that cannot begin": (
        {"workers": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}},
        "workers.rollingUpdate",
    ),
    "kubernetes discovery without rights": (
        {"rbac": {"create": False}},
        "discovery.mode: kubernetes needs a Role",
    ),
    "name that begins with a digit": ({"fullnameOverride": "1st"}, "fullnameOverride"),
    "name with capitals": ({"fullnameOverride": "Proa"}, "fullnameOverride"),
}


@pytest.mark.parametrize("what", BY_RULE)
def test_a_rule_refuses(what: str) -> None:
    values, named = BY_RULE[what]
    assert named in refusal(values)


def test_an_endpoint_is_refused() -> None:
    spec = {"model": {**MODEL["spec"]["model"], "endpoint": "triton:8001/m"}}
    del spec["model"]["program"]
    values = {"models": [{**MODEL, "spec": spec}]}
    assert "models[0] (m).spec.model.endpoint" in refusal(values)


def test_a_long_release_name_is_refused() -> None:
    assert "48 are the limit" in refusal({}, name="r" * 50)


def test_an_empty_registry_says_what_to_do() -> None:
    with pytest.raises(helm_python.HelmRenderError) as caught:
        render({})
    message = str(caught.value)
    assert "image.registry is empty" in message
    assert "make images REGISTRY=" in message
    assert "make push REGISTRY=" in message


def test_a_registry_is_all_that_is_needed() -> None:
    assert render(SITE)


@pytest.mark.parametrize("name", ["proa", "my-proa", "x"])
def test_the_full_name(name: str) -> None:
    full = name if "proa" in name else f"{name}-proa"
    assert f"name: {full}-frontend-peers\n" in render(SITE, name=name)["frontend.yaml"]

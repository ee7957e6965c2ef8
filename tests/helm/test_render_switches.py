"""Feature switches: all on, all off, each alone, each off, and every pair in its four settings."""

from __future__ import annotations

from itertools import combinations

import helm_python
import pytest

from helm.chart import APIS, SITE, Values, judged, over, render

CODERS = {"frontend": "f", "encoder": "e", "decoder": "d", "worker": "w", "store": "s"}
ACCOUNTS = {**CODERS, "coordinator": "c"}
SECRETS = {**CODERS, "client": "c"}
PARITY = {"pool": "dedicated", "policy": "parity", "parity": {"2": ["digits-parity-k2.pt2"]}}
DEDICATED: Values = {
    "name": "digits",
    "source": {"builtin": "digits"},
    "spec": {
        "model": {
            "program": "digits.pt2",
            "inputs": [{"name": "image", "dtype": "FP32", "shape": [1, 8, 8]}],
            "outputs": [{"name": "logits", "dtype": "FP32", "shape": [10]}],
        },
        "redundancy": PARITY,
    },
}
TOKENS = {"auth": {"tokens": {"existingSecret": "t"}}, "tests": {"token": {"existingSecret": "t"}}}
STORE = {"store": {"enabled": True, "image": "valkey", "auth": {"existingSecret": "users"}}}
KEDA = {"enabled": True, "kind": "keda", "prometheusAddress": "http://prometheus.example:9090"}

# Switch -> (values that turn it on, values that turn it off).
SWITCHES: dict[str, tuple[Values, Values]] = {
    "client certificates": (
        {"tls": {"enabled": True, "clientAuth": True}},
        {"tls": {"clientAuth": False}},
    ),
    "tls": ({"tls": {"enabled": True}}, {"tls": {"enabled": False, "clientAuth": False}}),
    "cert-manager": (
        {"tls": {"certManager": {"enabled": True}}},
        {"tls": {"certManager": {"enabled": False}, "existingSecrets": SECRETS}},
    ),
    "tokens": (TOKENS, {"auth": {"tokens": {"existingSecret": ""}}}),
    "autoscaling": (
        {"autoscaling": {"workers": {"enabled": True}}},
        {"autoscaling": {"workers": {"enabled": False}}},
    ),
    "keda": ({"autoscaling": {"workers": KEDA}}, {"autoscaling": {"workers": {"kind": "hpa"}}}),
    "disruption budgets": (
        {"podDisruptionBudget": {"enabled": True}},
        {"podDisruptionBudget": {"enabled": False}},
    ),
    "network policy": (
        {"networkPolicy": {"enabled": True}},
        {"networkPolicy": {"enabled": False}},
    ),
    "pod monitor": (
        {"monitoring": {"podMonitor": {"enabled": True}}},
        {"monitoring": {"podMonitor": {"enabled": False}}},
    ),
    "rules": (
        {"monitoring": {"prometheusRule": {"enabled": True}}},
        {"monitoring": {"prometheusRule": {"enabled": False}}},
    ),
    "dashboard": (
        {"monitoring": {"dashboard": {"enabled": True}}},
        {"monitoring": {"dashboard": {"enabled": False}}},
    ),
    "tests": ({"tests": {"enabled": True}}, {"tests": {"enabled": False}}),
    "chaos": ({"chaos": {"enabled": True}}, {"chaos": {"enabled": False}}),
    "encoder": ({"encoder": {"enabled": True}}, {"encoder": {"enabled": False}}),
    "decoder": ({"decoder": {"enabled": True}}, {"decoder": {"enabled": False}}),
    "rbac": (
        {"rbac": {"create": True}},
        {
            "rbac": {"create": False},
            "serviceAccount": {"names": {"frontend": "f", "coordinator": "c"}},
        },
    ),
    "accounts": (
        {"serviceAccount": {"create": True}},
        {"serviceAccount": {"create": False, "names": ACCOUNTS}},
    ),
    "dns": ({"discovery": {"mode": "dns"}}, {"discovery": {"mode": "kubernetes"}}),
    "gpu": ({"workers": {"mode": "gpu"}}, {"workers": {"mode": "cpu"}}),
    "spread": (
        {"workers": {"topologySpread": {"enabled": True}}},
        {"workers": {"topologySpread": {"enabled": False}}},
    ),
    "dedicated": ({"models": [DEDICATED]}, {}),
    "store": (STORE, {"store": {"enabled": False}}),
    "registry of the parent": ({"global": {"imageRegistry": "mirror.example"}}, {}),
}
ON, OFF = 0, 1
NEED_AN_API = ("client certificates", "keda", "tls")


def base(*apis: str) -> Values:
    return {**SITE, "apiVersions": list(apis)}


def check(values: Values) -> list[str]:
    """All objects are valid, and no two are the same; their names."""
    judgements = [judged(text) for path, text in render(values).items() if path.endswith(".yaml")]
    assert [problem for _, problems in judgements for problem in problems] == []
    names = [name for found, _ in judgements for name in found]
    assert len(names) == len(set(names))
    return names


def switched(start: Values, settings: dict[str, int]) -> Values:
    for name, setting in settings.items():
        start = over(start, SWITCHES[name][setting])
    return start


def test_all_on_and_all_off() -> None:
    on = check(switched(base(*APIS), dict.fromkeys(SWITCHES, ON)))
    off = check(switched(base(*APIS), dict.fromkeys(SWITCHES, OFF)))
    assert len(on) > len(off)


@pytest.mark.parametrize("name", SWITCHES)
def test_each_alone_and_each_off(name: str) -> None:
    for chosen, rest in ((ON, OFF), (OFF, ON)):
        check(switched(base(*APIS), {**dict.fromkeys(SWITCHES, rest), name: chosen}))


def rows(rotation: int) -> list[dict[str, int]]:
    """Eight settings of all switches in which every pair of switches meets in all four ways.

    Kleitman and Spencer (1973): each switch is on in 4 of the rows 1 to 7, in other ones than the
    rest. Two such sets differ, and share a row; in row 0 all are off.
    """
    names = list(SWITCHES)
    turned = names[rotation:] + names[:rotation]
    chosen = dict(zip(turned, combinations(range(1, 8), 4), strict=False))
    assert len(chosen) == len(names)
    return [{name: ON if row in chosen[name] else OFF for name in names} for row in range(8)]


@pytest.mark.parametrize("rotation", range(0, len(SWITCHES), 4))
def test_every_pair(rotation: int) -> None:
    table = rows(rotation)
    for first, second in combinations(SWITCHES, 2):
        assert len({(row[first], row[second]) for row in table}) == 4
    for row in table:
        check(switched(base(*APIS), row))


@pytest.mark.parametrize("name", sorted(SWITCHES.keys() - set(NEED_AN_API)))
def test_without_optional_apis(name: str) -> None:
    """A cluster without Prometheus, KEDA and cert-manager gets no object it does not know."""
    optional = {api.split("/")[0] for api in APIS}
    assert not optional & {found.split("/")[0] for found in check(switched(base(), {name: ON}))}


@pytest.mark.parametrize("name", NEED_AN_API)
def test_what_cannot_be_left_out_is_refused(name: str) -> None:
    with pytest.raises(helm_python.HelmRenderError, match="the cluster has no API"):
        render(switched(base(), {name: ON}))

"""Who is hit: Chaos Mesh's selectors and modes over the targets there are."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proa.errors import InvalidRequest
from proa_chaos.experiment import PROTECTIONS, Choice, Expression, Selector

ROLE, MODEL = "proa.dev/role", "proa.dev/model"
PARITY_ROLE = "parity-worker"  # of the workers of a dedicated pool
SHARD_ROLE = "shard"  # of a store: agent and server
COORDINATOR_ROLE = "store-coordinator"
SHOWN_MAX = 20  # targets that an error names


@dataclass(frozen=True)
class Target:
    """A process or pod that faults can hit. `domain`: what fails together with it (its node).

    `node`: where that is not the domain, the name that a selector's `nodes` means. `protection`: of
    a worker, the protection.mode of its model.
    """

    name: str
    domain: str
    address: str = ""
    namespace: str = "local"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    node: str = ""
    protection: str = PROTECTIONS[0]

    @property
    def machine(self) -> str:
        """The node that it is on."""
        return self.node or self.domain

    @property
    def role(self) -> str:
        return self.labels.get(ROLE, "")

    @property
    def model(self) -> str:
        return self.labels.get(MODEL, "")


def matching(selector: Selector, targets: Sequence[Target]) -> list[Target]:
    """The targets for which all of the selector holds, in the order of `targets`."""
    return [target for target in targets if _matches(selector, target)]


def choose(
    choice: Choice,
    targets: Sequence[Target],
    dice: random.Random,
    *,
    besides: Sequence[Target] = (),
) -> list[Target]:
    """The targets that mode and value take of those that match.

    Not those of `besides`, where enough others match. At least one. Errors: InvalidRequest when the
    selector matches nothing.
    """
    found = matching(choice.selector, targets)
    if not found:
        known = ", ".join(f"{t.name} ({_labels(t)})" for t in targets[:SHOWN_MAX]) or "nothing"
        raise InvalidRequest(f"the selector {_shown(choice.selector)} matches nothing of {known}")
    count = _count(choice, len(found), dice)
    fresh = [target for target in found if target not in besides]
    chosen = dice.sample(fresh if len(fresh) >= count else found, count)
    return [target for target in found if target in chosen]


def _count(choice: Choice, matched: int, dice: random.Random) -> int:
    match choice.mode:
        case "one":
            return 1
        case "fixed":
            return min(choice.value, matched)
        case "fixed-percent":
            return max(1, matched * choice.value // 100)
        case "random-max-percent":
            return max(1, matched * dice.randint(0, choice.value) // 100)
    assert choice.mode == "all", choice.mode
    return matched


def _matches(selector: Selector, target: Target) -> bool:
    names = selector.pods.get(target.namespace, ())
    return (
        (not selector.namespaces or target.namespace in selector.namespaces)
        and (not selector.pods or target.name in names)
        and (not selector.nodes or target.machine in selector.nodes)
        and all(target.labels.get(key) == value for key, value in selector.labels.items())
        and all(_holds(expression, target.labels) for expression in selector.expressions)
    )


def _holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value in expression.values
        case "NotIn":
            return value not in expression.values
        case "Exists":
            return value is not None
    assert expression.operator == "DoesNotExist", expression.operator
    return value is None


def _labels(target: Target) -> str:
    return ", ".join(f"{key.rpartition('/')[2]}={value}" for key, value in target.labels.items())


def _shown(selector: Selector) -> str:
    parts = {key: value for key, value in vars(selector).items() if value}
    return str(parts) if parts else "of everything"

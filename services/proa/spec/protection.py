"""The keys under `protection`, and the rules among them."""

from __future__ import annotations

from proa.spec.model import PATH, SHA256
from proa.spec.readers import (
    NEEDED,
    Field,
    Reader,
    Rule,
    boolean,
    given,
    integer,
    number,
    one_of,
    table,
)
from proa.spec.section import Section
from proa.spec.types import (
    ON_FAULT,
    PROTECTION_MODES,
    PROTECTION_SCHEMES,
    ProgramRef,
    ProtectionSpec,
)


def _plan(section: Section) -> ProgramRef | None:
    return _PINNED(section) if section.is_mapping else ProgramRef(PATH(section))


def _plan_chooses(section: Section, found: ProtectionSpec) -> None:
    if found.plan is not None and found.scheme != "auto":
        raise section.error(f"scheme {found.scheme} leaves the plan nothing to choose; write auto")


def _limit_of_a_plan(section: Section, found: ProtectionSpec) -> None:
    if found.max_overhead_percent is not None and found.plan is None:
        raise section.error("maxOverheadPercent needs a plan, whose times it sums up")


_PINNED = table(
    lambda file, sha256: ProgramRef(file, sha256),
    Field("file", PATH, NEEDED, "file that `proa abft profile` wrote"),
    Field("sha256", SHA256, None, "hash that it must have"),
)
PLAN = Reader(_plan, {"anyOf": [PATH.schema, _PINNED.schema]})
PROTECTION = table(
    ProtectionSpec,
    Field("mode", one_of(PROTECTION_MODES), ProtectionSpec.mode,
          "checks of matrix products: none, detect (a fault is an error), correct (recomputed)"),
    Field("strict", boolean, ProtectionSpec.strict,
          "refuse a program with matrix products that cannot be checked"),
    Field("scheme", one_of(PROTECTION_SCHEMES), ProtectionSpec.scheme,
          "how they are checked; auto: as the plan says, row without one"),
    Field("plan", PLAN, ProtectionSpec.plan,
          "file of `proa abft profile`, or {file, sha256}: a measured scheme for each layer"),
    Field("maxOverheadPercent", number(0, 1000), ProtectionSpec.max_overhead_percent,
          "layers go unchecked until the plan's extra times are below this share of the program's"),
    Field("onFault", one_of(ON_FAULT), ProtectionSpec.on_fault,
          "a result known to be wrong: failover (refused, so tried elsewhere), answer (marked)"),
    Field("quarantineAfter", integer(1, 1000), ProtectionSpec.quarantine_after,
          "faults of a worker after which it is left alone"),
    Field("quarantineWindowMinutes", number(0.1, 10_080), ProtectionSpec.quarantine_window_minutes,
          "minutes within which they are counted, and for which it is left alone"),
    Field("quarantinePercentMax", number(0, 100), ProtectionSpec.quarantine_percent_max,
          "so many of a model's workers may be left alone at a time"),
    rules=(
        Rule(_plan_chooses, {
            "if": given("plan"), "then": {"properties": {"scheme": {"enum": ["auto", None]}}},
        }),
        Rule(_limit_of_a_plan, {"if": given("maxOverheadPercent"), "then": given("plan")}),
    ),
)  # fmt: skip

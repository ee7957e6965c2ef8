"""The keys under `redundancy`, and the rules among them."""

from __future__ import annotations

from typing import Any

from proa.spec.model import PATH, SHA256
from proa.spec.readers import (
    NEEDED,
    Field,
    Reader,
    Rule,
    anchored,
    has,
    integer,
    list_of,
    number,
    one_of,
    or_null,
    table,
    text,
    unsupported,
)
from proa.spec.section import Section
from proa.spec.types import CODERS, POLICIES, HedgeSpec, ProgramRef, RedundancySpec

K_MAX, R_MAX = 16, 3
PARITY_KS = tuple(str(k) for k in range(2, K_MAX + 1))


def _delay(section: Section) -> float | None:
    return None if text(section) == "auto" else _DELAY_MS(section)


def _program(section: Section) -> ProgramRef:
    return _PINNED(section) if section.is_mapping else ProgramRef(PATH(section))


def _parity(section: Section) -> dict[int, tuple[ProgramRef, ...]]:
    found: dict[int, tuple[ProgramRef, ...]] = {}
    keys = section.keys()
    for key in keys:
        if key not in PARITY_KS:
            raise section.error(f"key {key!r} must be a k from 2 to {K_MAX}")
        rows = section.child(key)
        found[int(key)] = () if rows is None else _ROWS(rows)
    return found


def _build_redundancy(backup: None, **rest: Any) -> RedundancySpec:
    assert backup is None
    return RedundancySpec(**rest)


def _replica_k(section: Section, found: RedundancySpec) -> None:
    if found.coder == "replica" and found.k != 1:
        raise section.error(f"coder replica has k 1, not {found.k}")
    if found.coder != "replica" and found.k < 2:
        raise section.error(f"k {found.k}: coder {found.coder} needs k of at least 2")


def _mean_r(section: Section, found: RedundancySpec) -> None:
    if found.coder == "mean" and found.r != 1:
        raise section.error(f"coder mean has r 1, not {found.r}")


def _no_parity_of_replicas(section: Section, found: RedundancySpec) -> None:
    if found.policy == "parity" and found.coder == "replica":
        raise section.error("coder replica has no parity model; policy replicate makes copies")


_PINNED = table(
    lambda program, sha256: ProgramRef(program, sha256),
    Field("program", PATH, NEEDED, "file of the parity model: a torch.export archive (.pt2)"),
    Field("sha256", SHA256, None, "hash that it must have; left out, `proa pack` pins it"),
)
_DELAY_MS = number(0.1, 600_000)
DELAY = Reader(_delay, {"anyOf": [one_of(("auto",)).schema, _DELAY_MS.schema]})
_ROWS = list_of(Reader(_program, {"anyOf": [PATH.schema, _PINNED.schema]}), R_MAX)
PARITY = Reader(
    _parity,
    {
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {anchored("|".join(PARITY_KS)): or_null(_ROWS.schema)},
    },
)
HEDGE = table(
    HedgeSpec,
    Field("delayMs", DELAY, HedgeSpec.delay_ms, "ms until a second copy; auto: p95", shown="auto"),
    Field("budgetPercent", number(0, 100), HedgeSpec.budget_percent, "hedges per 100 queries"),
)
_R = RedundancySpec()
_REPLICA = has(coder="replica")
REDUNDANCY = table(
    _build_redundancy,
    Field("backup", unsupported("a backup model is not supported by this version; write null"),
          None, "a cheaper model to fall back on: not in this version"),
    Field("mode", one_of(("enforce", "observe")), _R.mode,
          "observe: the parity runs and is measured, and no answer comes from it"),
    Field("policy", one_of(POLICIES), _R.policy, "what is done about slow and dead workers"),
    Field("k", integer(1, K_MAX), _R.k, "queries in a coding group; 1 with coder replica"),
    Field("r", integer(1, R_MAX), _R.r, "parity rows of a group, or copies under replicate"),
    Field("coder", one_of(CODERS), _R.coder, "how parity queries are made"),
    Field("parity", PARITY, {}, "parity programs by k: a file, or {program, sha256}, for each row"),
    Field("pool", one_of(("shared", "dedicated")), _R.pool,
          "shared: parity runs on idle workers; dedicated: on workers of its own"),
    Field("placement", one_of(("auto", "pod", "inline")), _R.placement,
          "where encoding and decoding happen: own services, the frontend, or inline while small"),
    Field("patience", one_of(("first", "tail")), _R.patience,
          "first: the first answer wins; tail: exact answers are preferred until p95 has passed"),
    Field("groupMsMax", number(0, 60_000), _R.group_ms_max, "ms until a group closes unfilled"),
    Field("idleReserve", integer(0, 1024), _R.idle_reserve,
          "idle workers that redundant work leaves alone"),
    Field("inflightMax", integer(1, 64), _R.inflight_max,
          "requests at one worker at a time; under `auto` one more may wait there"),
    Field("hedge", HEDGE, _R.hedge, "second copies of late queries"),
    Field("qualitySample", number(0, 1), _R.quality_sample,
          "share of groups that are decoded only to measure agreement"),
    Field("agreementMin", number(0, 1), _R.agreement_min,
          "below this measured agreement reconstruction switches itself off"),
    rules=(
        Rule(_replica_k, {
            "if": _REPLICA, "then": {"required": ["k"], "properties": {"k": {"const": 1}}},
            "else": {"properties": {"k": {"minimum": 2}}},
        }),
        Rule(_mean_r, {"if": has(coder="mean"), "then": {"properties": {"r": {"maximum": 1}}}}),
        Rule(_no_parity_of_replicas, {"if": has(policy="parity"), "then": {"not": _REPLICA}}),
    ),
)  # fmt: skip

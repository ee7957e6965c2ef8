"""The whole CodedModel file: its sections, and the rules across them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from proa.spec.model import MODEL, NAME
from proa.spec.protection import PROTECTION
from proa.spec.readers import (
    NEEDED,
    Field,
    Rule,
    Schema,
    given,
    has,
    number,
    one_of,
    table,
)
from proa.spec.redundancy import PARITY_KS, REDUNDANCY
from proa.spec.section import Section
from proa.spec.types import (
    NUMERIC_DTYPES,
    PROTECTION_MODES,
    CodedModel,
    ProtectionSpec,
    RedundancySpec,
    SloSpec,
)

API_VERSION = "proa.dev/v1alpha1"


def _redundancy_of(section: Section) -> Section:
    return section.child("redundancy") or section


def _fixed_numbers(section: Section, found: CodedModel) -> None:
    if found.redundancy.policy == "parity" and not found.codable:
        message = "policy parity needs fixed-shape numeric inputs and outputs"
        raise _redundancy_of(section).error(message)


def _parity_programs(section: Section, found: CodedModel) -> None:
    red = found.redundancy
    if red.policy == "parity" and not found.has_parity:
        have = len(red.parity.get(red.k, ()))
        raise _redundancy_of(section).error(
            f"policy parity with k {red.k}, r {red.r} needs {red.r} parity program(s) under"
            f' parity."{red.k}"; {have} given (train one: proa train parity)'
        )


def _program_to_protect(section: Section, found: CodedModel) -> None:
    if found.protection.checked and found.model.program is None:
        holder = section.child("protection") or section
        raise holder.error(f"mode {found.protection.mode} needs model.program: it is rewritten")


_PROTECTED = {
    "required": ["protection"],
    "properties": {
        "protection": {
            "type": "object",
            "required": ["mode"],
            "properties": {"mode": {"enum": list(PROTECTION_MODES[1:])}},
        }
    },
}
_CODABLE = {
    "items": {
        "properties": {
            "dtype": {"enum": list(NUMERIC_DTYPES)},
            "shape": {"items": {"minimum": 1}},
        }
    }
}
_PARITY_POLICY = {"required": ["redundancy"], "properties": {"redundancy": has(policy="parity")}}


def _rows_for(k: int) -> Schema:
    """Where k is in force, `parity` has programs for it (how many, for r: the loader says)."""
    in_force = {"properties": {"k": {"enum": [k, None]}}} if k == RedundancySpec.k else has(k=k)
    rows = {"required": [str(k)], "properties": {str(k): {"type": "array", "minItems": 1}}}
    parity = {"required": ["parity"], "properties": {"parity": {"type": "object", **rows}}}
    return {"if": in_force, "then": parity}


_SOME_ROWS = {
    "if": {"not": has(coder="mean")},
    "then": {"allOf": [_rows_for(int(k)) for k in PARITY_KS]},
}


SLO = table(
    SloSpec,
    Field("latencyMs", number(0.1, 3_600_000), SloSpec.latency_ms, "ms that were promised"),
    Field("percentile", number(50, 99.999), SloSpec.percentile, "at which percentile"),
    Field("defaultDeadlineMs", number(1, 3_600_000), SloSpec.default_deadline_ms,
          "deadline in ms of a request that brings none"),
)  # fmt: skip
SPEC = table(
    partial(CodedModel, ""),
    Field("model", MODEL, NEEDED, "the deployed model: one of program, repository, endpoint"),
    Field("redundancy", REDUNDANCY, RedundancySpec(), "how its answers are protected"),
    Field("protection", PROTECTION, ProtectionSpec(), "checks against silent data corruption"),
    Field("slo", SLO, SloSpec(), "what was promised to its users"),
    rules=(
        Rule(_fixed_numbers, {
            "if": _PARITY_POLICY,
            "then": {"properties": {"model": {
                "properties": {"inputs": _CODABLE, "outputs": _CODABLE},
            }}},
        }),
        Rule(_parity_programs, {
            "if": _PARITY_POLICY, "then": {"properties": {"redundancy": _SOME_ROWS}},
        }),
        Rule(_program_to_protect, {
            "if": _PROTECTED, "then": {"properties": {"model": given("program")}},
        }),
    ),
)  # fmt: skip


def _text(name: str) -> str:
    return name


def _named(metadata: str, spec: CodedModel, **_: str) -> CodedModel:
    return replace(spec, name=metadata)


METADATA = table(
    _text,
    Field("name", NAME, NEEDED, "the name that clients ask for"),
)
CODED_MODEL = table(
    _named,
    Field("apiVersion", one_of((API_VERSION,)), NEEDED, "version of this format"),
    Field("kind", one_of(("CodedModel",)), NEEDED, "what this file is"),
    Field("metadata", METADATA, NEEDED, "holds the name and nothing else"),
    Field("spec", SPEC, NEEDED, "the model and how its answers are protected"),
)

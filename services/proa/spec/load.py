"""Spec file -> CodedModel. The one loader: CLI, frontend, packer and chart all use it."""

from __future__ import annotations

import re
from pathlib import Path

from proa.spec import section as s
from proa.spec.section import Section
from proa.spec.types import (
    CODERS,
    DTYPES,
    POLICIES,
    CodedModel,
    HedgeSpec,
    ModelSpec,
    ProgramRef,
    ProtectionSpec,
    RedundancySpec,
    SloSpec,
    TensorSpec,
)

API_VERSION = "proa.dev/v1alpha1"
K_MAX, R_MAX = 16, 3
ELEMENTS_MAX = 1 << 26

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_TENSOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENDPOINT = re.compile(r"[^\s/:]+:([0-9]{1,5})/[^\s/]+")
_PARITY_K = re.compile(r"[1-9][0-9]?")
PORT_MAX = 65_535


def load(path: str | Path) -> CodedModel:
    """Read and check a CodedModel file. Errors: SpecError with file, line, key and limit."""
    file = Path(path)
    root = s.read_file(file)
    root.needed("apiVersion", s.one_of((API_VERSION,)))
    root.needed("kind", s.one_of(("CodedModel",)))
    name = _metadata(root)
    spec = root.child("spec", required=True)
    assert spec is not None
    root.done()
    redundancy_section = spec.mapping("redundancy")
    found = CodedModel(
        name=name,
        model=spec.needed("model", _model),
        redundancy=_redundancy(redundancy_section),
        protection=_protection(spec.mapping("protection")),
        slo=_slo(spec.mapping("slo")),
        path=file,
    )
    spec.done()
    _check_parity(found, redundancy_section)
    return found


def _metadata(root: Section) -> str:
    metadata = root.child("metadata", required=True)
    assert metadata is not None
    name = metadata.needed("name", s.text)
    if not _NAME.fullmatch(name):
        raise metadata.error("name must be 1 to 63 characters of a-z, 0-9 and '-'")
    metadata.done()
    return name


def _model(section: Section) -> ModelSpec:
    sources = [key for key in ("program", "repository", "endpoint") if section.has(key)]
    if len(sources) != 1:
        raise section.error("give exactly one of program, repository, endpoint")
    sha256 = section.value("sha256", _sha256, None)
    program = section.value("program", lambda v: ProgramRef(_path(v), sha256), None)
    if program is None and sha256 is not None:
        raise section.error("sha256 goes with program")
    found = ModelSpec(
        program=program,
        repository=section.value("repository", _path, None),
        endpoint=section.value("endpoint", _endpoint, None),
        max_batch=section.value("maxBatch", s.integer(1, 1024), 8),
        inputs=section.needed("inputs", _tensors),
        outputs=section.needed("outputs", _tensors),
    )
    section.done()
    return found


def _path(section: Section) -> Path:
    return section.file.parent / s.text(section)


def _sha256(section: Section) -> str | None:
    value = s.text(section)
    if not _SHA256.fullmatch(value):
        raise section.error("must be a sha256 of 64 lower-case hexadecimal digits")
    return value


def _endpoint(section: Section) -> str:
    value = s.text(section)
    match = _ENDPOINT.fullmatch(value)
    if match is None or not 1 <= int(match[1]) <= PORT_MAX:
        raise section.error(f"{value!r} is not HOST:PORT/MODEL with a port from 1 to {PORT_MAX}")
    return value


def _tensors(section: Section) -> tuple[TensorSpec, ...]:
    found = tuple(_tensor(item) for item in section.items(limit=16))
    if not found:
        raise section.error("needs at least one tensor")
    if len({t.name for t in found}) != len(found):
        raise section.error("tensor names must differ")
    return found


def _tensor(section: Section) -> TensorSpec:
    name = section.needed("name", s.text)
    if not _TENSOR.fullmatch(name) or name.startswith("parity."):
        raise section.error(f"name {name!r}: letters, digits, '_', '.', '-'; not 'parity.…'")
    found = TensorSpec(
        name=name,
        dtype=section.needed("dtype", s.one_of(DTYPES)),
        shape=section.needed("shape", _shape),
    )
    section.done()
    return found


def _shape(section: Section) -> tuple[int, ...]:
    dims = tuple(s.integer(-1, ELEMENTS_MAX)(item) for item in section.items(limit=8))
    elements = 1
    for dim in dims:
        if dim == 0:
            raise section.error("a dimension is at least 1, or -1 where it varies")
        elements *= abs(dim)
    if elements > ELEMENTS_MAX:
        raise section.error(f"has {elements} elements; the limit is {ELEMENTS_MAX}")
    return dims


def _redundancy(section: Section) -> RedundancySpec:
    default = RedundancySpec()
    backup = section.child("backup")
    if backup is not None:
        raise backup.error("a backup model is not supported by this version; write null")
    found = RedundancySpec(
        mode=section.value("mode", s.one_of(("enforce", "observe")), default.mode),
        policy=section.value("policy", s.one_of(POLICIES), default.policy),
        k=section.value("k", s.integer(1, K_MAX), default.k),
        r=section.value("r", s.integer(1, R_MAX), default.r),
        coder=section.value("coder", s.one_of(CODERS), default.coder),
        parity=section.value("parity", _parity, {}),
        pool=section.value("pool", s.one_of(("shared", "dedicated")), default.pool),
        placement=section.value("placement", s.one_of(("auto", "pod", "inline")), "auto"),
        patience=section.value("patience", s.one_of(("first", "tail")), default.patience),
        group_ms_max=section.value("groupMsMax", s.number(0, 60_000), default.group_ms_max),
        idle_reserve=section.value("idleReserve", s.integer(0, 1024), default.idle_reserve),
        inflight_max=section.value("inflightMax", s.integer(1, 64), default.inflight_max),
        hedge=_hedge(section.mapping("hedge")),
        quality_sample=section.value("qualitySample", s.number(0, 1), default.quality_sample),
        agreement_min=section.value("agreementMin", s.number(0, 1), default.agreement_min),
    )
    section.done()
    return found


def _parity(section: Section) -> dict[int, tuple[ProgramRef, ...]]:
    found: dict[int, tuple[ProgramRef, ...]] = {}
    ks = section.keys()
    for key in ks:
        if not _PARITY_K.fullmatch(key) or not 2 <= int(key) <= K_MAX:
            raise section.error(f"key {key!r} must be a k from 2 to {K_MAX}")
        rows = section.child(key)
        items = [] if rows is None else rows.items(limit=R_MAX)
        found[int(key)] = tuple(_program(item) for item in items)
    return found


def _program(section: Section) -> ProgramRef:
    if not section.is_mapping:
        return ProgramRef(_path(section))
    found = ProgramRef(section.needed("program", _path), section.value("sha256", _sha256, None))
    section.done()
    return found


def _hedge(section: Section) -> HedgeSpec:
    def delay(value: Section) -> float | None:
        return None if s.text(value) == "auto" else s.number(0.1, 600_000)(value)

    found = HedgeSpec(
        delay_ms=section.value("delayMs", delay, None),
        budget_percent=section.value("budgetPercent", s.number(0, 100), 10.0),
    )
    section.done()
    return found


def _protection(section: Section) -> ProtectionSpec:
    mode = section.value("mode", s.text, "none")
    if mode != "none":
        raise section.error(f"mode {mode!r} is not supported by this version; write none")
    section.done()
    return ProtectionSpec(mode)


def _slo(section: Section) -> SloSpec:
    default = SloSpec()
    found = SloSpec(
        latency_ms=section.value("latencyMs", s.number(0.1, 3_600_000), default.latency_ms),
        percentile=section.value("percentile", s.number(50, 99.999), default.percentile),
        default_deadline_ms=section.value(
            "defaultDeadlineMs", s.number(1, 3_600_000), default.default_deadline_ms
        ),
    )
    section.done()
    return found


def _check_parity(found: CodedModel, section: Section) -> None:
    """Rules across fields: a policy must have what it runs on."""
    red = found.redundancy
    if red.coder == "replica" and red.k != 1:
        raise section.error(f"coder replica has k 1, not {red.k}")
    if red.coder != "replica" and red.k < 2:
        raise section.error(f"k {red.k}: coder {red.coder} needs k of at least 2")
    if red.coder == "mean" and red.r != 1:
        raise section.error(f"coder mean has r 1, not {red.r}")
    if red.policy != "parity":
        return
    if not found.codable:
        raise section.error("policy parity needs fixed-shape numeric inputs and outputs")
    if red.coder == "replica":
        raise section.error("coder replica has no parity model; policy replicate makes copies")
    if not found.has_parity:
        have = len(red.parity.get(red.k, ()))
        raise section.error(
            f"policy parity with k {red.k}, r {red.r} needs {red.r} parity program(s) under"
            f' parity."{red.k}"; {have} given (train one: proa train parity)'
        )

"""`proa pack`: a spec's programs as a Triton model repository on disk.

DIR/<model>/config.pbtxt      names, dtypes, shapes; parameters proa.package and proa.programs
DIR/<model>/1/model.py        imports proa.worker.backend
DIR/<model>/1/package.json    what the backend loads: `manifest.Package`
DIR/<model>/1/*.pt2           the programs, named after their role
DIR/proa_faults/...           only with faults=True
"""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proa.codes import make_code
from proa.errors import ProgramRefused, SpecError
from proa.spec import CodedModel, ProgramRef, ProtectionSpec, TensorSpec
from proa.spec.reports import ABFT, LOAD
from proa.worker import programs
from proa.worker.manifest import (
    FAULTS_MODEL,
    PACKAGE_FILE,
    Package,
    PackedProgram,
    ProgramSignature,
)
from proa.worker.protection import protect_file, split_verdict
from proa_kernels.checksum import FORMAT

DEVICES = ("cpu", "gpu")
_MODEL_FILE = '''"""Written by `proa pack`."""
import os, sys
# Triton's embedded Python ignores PYTHONPATH.
sys.path += os.environ.get("PYTHONPATH", "").split(os.pathsep)
from proa.worker.{module} import TritonPythonModel
'''


def pack(spec: CodedModel, out_dir: Path, *, faults: bool = False, device: str = "cpu") -> Path:
    """Write the model repository of `spec` into `out_dir` and return it.

    Every program is loaded and tried out first. Each model folder appears in one rename, and where
    nothing changed nothing is written. `faults` adds the fault injection model (without it, an old
    one is removed); `device`, "cpu" or "gpu", is where Triton places the instance.
    Raises SpecError (this cannot be packed, with field and file) or ProgramRefused (a bad program).
    """
    if device not in DEVICES:
        raise SpecError(f"device {device!r} is not one of {', '.join(DEVICES)}")
    if spec.model.endpoint is not None:
        raise _error(spec, "model.endpoint", "nothing to pack: this model already runs elsewhere")
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=out_dir) as name:
        draft = Path(name) / "new"
        draft.mkdir()
        if spec.model.repository is not None:
            _copy_repository(spec, spec.model.repository, draft)
        else:
            _write_model(spec, draft / spec.name, device)
        if faults:
            _write_faults(draft / FAULTS_MODEL)
        for model in sorted(draft.iterdir()):
            _replace(model, out_dir / model.name, Path(name))
    if not faults and (out_dir / FAULTS_MODEL).exists():
        shutil.rmtree(out_dir / FAULTS_MODEL)
    return out_dir


def _error(spec: CodedModel, field: str, message: str) -> SpecError:
    return SpecError(f"{spec.path}: spec.{field}: {message}")


def _copy_repository(spec: CodedModel, source: Path, draft: Path) -> None:
    """A model the user brings: `source` is the model's folder, or a repository that holds it."""
    folder = source if (source / "config.pbtxt").is_file() else source / spec.name
    if not (folder / "config.pbtxt").is_file():
        raise _error(spec, "model.repository", f"no config.pbtxt in {source} nor in {folder}")
    shutil.copytree(folder, draft / spec.name)


def _write_model(spec: CodedModel, folder: Path, device: str) -> None:
    _check_tensors(spec)
    version = folder / "1"
    version.mkdir(parents=True)
    drafts: dict[str, _Draft] = {}
    refs = _program_refs(spec)
    for name, (field, ref) in refs.items():
        drafts[name] = _write_program(spec, name, field, ref, version, device)
    package = _package(spec, drafts)
    signatures = package.signatures()
    for name, (field, _) in refs.items():
        where = f"{spec.path}: spec.{field}"
        checked = package.checked(name)
        _try_out(where, drafts[name].program, signatures[name], spec.model.max_batch, checked)
    (version / PACKAGE_FILE).write_text(package.to_json(), encoding="utf-8")
    (version / "model.py").write_text(_MODEL_FILE.format(module="backend"), encoding="utf-8")
    (folder / "config.pbtxt").write_text(model_config(package, device), encoding="utf-8")


@dataclass(frozen=True)
class _Draft:
    """A program in the new package. `origin`: sha256 of the user's file, before protection."""

    packed: PackedProgram
    program: programs.Program
    origin: str
    coverage: Mapping[str, Any] | None = None


def _write_program(
    spec: CodedModel, name: str, field: str, ref: ProgramRef, version: Path, device: str
) -> _Draft:
    file = version / f"{name}.pt2"
    origin, coverage = "", None
    try:
        shutil.copyfile(ref.path, file)
        if name == "deployed" and spec.protection.checked:
            origin, coverage = protect_file(file, ref.sha256, spec.protection, device)
        program = programs.load(file, None if coverage else ref.sha256)
    except OSError as exc:
        raise _error(spec, field, f"{ref.path}: {exc.strerror}") from exc
    except SpecError as exc:
        raise _error(spec, "protection", f"{ref.path}: {exc}") from exc
    except ProgramRefused as exc:
        raise ProgramRefused(f"{spec.path}: spec.{field}: {ref.path}: {exc.__cause__}") from exc
    packed = PackedProgram(file.name, program.sha256)
    return _Draft(packed, program, origin or program.sha256, coverage)


def _program_refs(spec: CodedModel) -> dict[str, tuple[str, ProgramRef]]:
    """The spec's programs by role, each with the name of its field in the spec."""
    found = spec.programs()
    if "deployed" not in found:
        raise _error(spec, "model.program", "is missing")
    red = spec.redundancy
    if red.coder == "sum" and red.parity and not spec.codable:
        raise _error(spec, "redundancy.parity", "tensors of variable shape cannot be coded")
    if red.coder == "sum" and red.parity and red.k not in red.parity:
        given = ", ".join(str(k) for k in sorted(red.parity))
        raise _error(
            spec, "redundancy.parity", f"programs for k {given}, but redundancy.k is {red.k}"
        )
    rows = len(red.parity.get(red.k, ()))
    if red.coder == "sum" and red.parity and rows < red.r:
        raise _error(spec, f'redundancy.parity."{red.k}"', f"{rows} programs for r {red.r}")
    fields = {"deployed": "model.program"}
    fields |= {f"parity.{row}": f'redundancy.parity."{red.k}"[{row}]' for row in range(rows)}
    return {name: (fields[name], ref) for name, ref in found.items()}


def _check_tensors(spec: CodedModel) -> None:
    for field, tensors in (("inputs", spec.model.inputs), ("outputs", spec.model.outputs)):
        for tensor in tensors:
            where = f"model.{field}: {tensor.name}"
            if tensor.dtype not in programs.DTYPES:
                raise _error(spec, where, f"a program has no {tensor.dtype}; use model.repository")
            if tensor.name in (LOAD.name, ABFT.name):
                raise _error(spec, where, "the name is taken by a report of workers")
            if not tensor.shape:
                raise _error(spec, where, "shape is empty; Triton wants at least [1]")


def _package(spec: CodedModel, drafts: Mapping[str, _Draft]) -> Package:
    red = spec.redundancy
    code = make_code(red.coder, red.k, red.r)
    hosted = dict(drafts)
    if red.coder == "mean" and spec.has_parity and "parity.0" not in hosted:
        # The deployed program answers the mean of k queries: one file, two roles.
        hosted["parity.0"] = drafts["deployed"]
    # Of the users' files: checksums summed on another CPU may differ in their last bits, and the
    # package must be the same wherever it is packed.
    protection = _protection_parts(spec.protection, hosted["deployed"].coverage)
    digest = hashlib.sha256()
    for part in (hosted["deployed"].origin, *protection, code.id, *_parity_hashes(hosted)):
        digest.update(part.encode() + b"\n")
    return Package(
        model=spec.name,
        package=digest.hexdigest(),
        code={"coder": red.coder, "k": red.k, "r": red.r},
        programs={name: draft.packed for name, draft in hosted.items()},
        max_batch=spec.model.max_batch,
        inputs=spec.model.inputs,
        outputs=spec.model.outputs,
        coverage=hosted["deployed"].coverage,
        on_fault=spec.protection.on_fault,
    )


def _protection_parts(spec: ProtectionSpec, coverage: Mapping[str, Any] | None) -> list[str]:
    """What of the protection makes it another package."""
    if coverage is None:
        return []
    parts = [f"protection {spec.mode}", f"checksums {FORMAT}"]
    if spec.scheme != "auto":
        parts.append(f"scheme {spec.scheme}")
    if "plan" in coverage:
        parts.append(f"plan {coverage['plan']['sha256']} {spec.max_overhead_percent}")
    if spec.on_fault != "failover":
        parts.append(f"onFault {spec.on_fault}")
    return parts


def _parity_hashes(hosted: Mapping[str, _Draft]) -> list[str]:
    return [hosted[name].origin for name in sorted(hosted) if name != "deployed"]


def _try_out(
    where: str,
    program: programs.Program,
    signature: ProgramSignature,
    batch_max: int,
    checked: bool,
) -> None:
    """Zeros through the program, at batch 1 and at the maximum, as the worker's canary will."""
    inputs = [(dtype, spec.shape) for _, spec, dtype in signature.inputs]
    if any(dim < 0 for _, shape in inputs for dim in shape):
        return  # no shape to try it with
    for batch in sorted({1, batch_max}):
        try:
            outputs, _ = split_verdict(programs.try_out(program, inputs, batch), checked)
            _check_outputs(outputs, signature, batch)
        except ProgramRefused as exc:
            raise ProgramRefused(f"{where}: the program {exc}") from exc


def _check_outputs(
    outputs: tuple[torch.Tensor, ...], signature: ProgramSignature, batch: int
) -> None:
    if len(outputs) != len(signature.outputs):
        raise ProgramRefused(f"has {len(outputs)} outputs; the spec has {len(signature.outputs)}")
    for output, (name, spec, dtype) in zip(outputs, signature.outputs, strict=True):
        if not isinstance(output, torch.Tensor):
            raise ProgramRefused(f"gives a {type(output).__name__} as output {name!r}")
        found, expected = list(output.shape), [batch, *spec.shape]
        fits = len(found) == len(expected) and all(
            want in (-1, got) for got, want in zip(found, expected, strict=True)
        )
        if not fits or output.dtype != programs.DTYPES[dtype]:
            raise ProgramRefused(
                f"gives {output.dtype} {found} as output {name!r}; the spec says {dtype} {expected}"
            )
        if output.is_floating_point() and not bool(torch.isfinite(output).all()):
            raise ProgramRefused(
                f"gives NaN or Inf in output {name!r} for zeros, which the worker's canary sends"
            )


def model_config(package: Package, device: str) -> str:
    """config.pbtxt, complete: Triton runs with auto-completion off.

    Every input is optional, since deployed and parity programs have their own; the backend checks
    presence. Parameters tell frontends what the worker hosts.
    """
    signatures = package.signatures().values()
    inputs = {spec.name: spec for s in signatures for _, spec, _ in s.inputs}
    outputs = {spec.name: spec for s in signatures for _, spec, _ in s.outputs}
    outputs[LOAD.name] = LOAD
    if package.coverage is not None:
        outputs[ABFT.name] = ABFT
    code = package.code
    parameters = {
        "proa.package": package.package,
        "proa.programs": ",".join(package.programs),
        "proa.code": f"{code['coder']}:{code['k']}:{code['r']}",
    }
    lines = [
        f'name: "{package.model}"',
        'backend: "python"',
        f"max_batch_size: {package.max_batch}",
        *(_tensor_config("input", spec, " optional: true") for spec in inputs.values()),
        *(_tensor_config("output", spec) for spec in outputs.values()),
        f"instance_group [ {{ count: 1 kind: KIND_{device.upper()} }} ]",
        *(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor_config(field: str, spec: TensorSpec, extra: str = "") -> str:
    dims = ", ".join(str(dim) for dim in spec.shape)
    tensor = f'name: "{spec.name}" data_type: TYPE_{spec.dtype} dims: [ {dims} ]{extra}'
    return f"{field} [ {{ {tensor} }} ]"


_FAULTS_CONFIG = f"""\
name: "{FAULTS_MODEL}"
backend: "python"
max_batch_size: 0
input [ {{ name: "request" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
output [ {{ name: "reply" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""


def _write_faults(folder: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(_MODEL_FILE.format(module="fault_model"))
    (folder / "config.pbtxt").write_text(_FAULTS_CONFIG)


def _replace(new: Path, place: Path, attic: Path) -> None:
    """Put folder `new` at `place`; `attic` (same file system) takes what stood there."""
    if place.exists():
        if _same(new, place):
            return
        place.rename(attic / f"{place.name}.old")
    new.rename(place)


def _same(left: Path, right: Path) -> bool:
    names = {path.relative_to(left) for path in left.rglob("*") if "__pycache__" not in path.parts}
    other = {
        path.relative_to(right) for path in right.rglob("*") if "__pycache__" not in path.parts
    }
    return names == other and all(
        filecmp.cmp(left / name, right / name, shallow=False)
        for name in names
        if (left / name).is_file()
    )

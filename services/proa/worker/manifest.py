"""package.json: what a packed model consists of. `proa pack` writes it, worker and backend read it.

No torch here: the worker's main process reads packages too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from proa.errors import ProgramRefused
from proa.spec import TensorSpec

PACKAGE_FILE = "package.json"
FAULTS_MODEL = "proa_faults"
PARITY_PREFIX = "parity."


@dataclass(frozen=True)
class PackedProgram:
    """A program file beside package.json, and the sha256 (hex) it must have."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ProgramSignature:
    """Tensors of a program: (name on the wire, spec on the wire, dtype the program takes)."""

    inputs: tuple[tuple[str, TensorSpec, str], ...]
    outputs: tuple[tuple[str, TensorSpec, str], ...]


@dataclass(frozen=True)
class Package:
    """package.json. `package`: hash over deployed program, protection, code and parity programs.

    `coverage`: which matrix products of the deployed program are checked, as written by
    `proa_kernels.Coverage`; None without protection. `on_fault`: failover, or answer, what becomes
    of a result that is known to be wrong.
    """

    model: str
    package: str
    code: Mapping[str, Any]
    programs: Mapping[str, PackedProgram]
    max_batch: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    coverage: Mapping[str, Any] | None = None
    on_fault: str = "failover"

    @classmethod
    def read(cls, path: Path) -> Package:
        """Read a package.json. Raises ProgramRefused when it is not one."""
        try:
            tree = json.loads(path.read_bytes())
            return cls(
                model=tree["model"],
                package=tree["package"],
                code=tree["code"],
                programs={name: PackedProgram(**ref) for name, ref in tree["programs"].items()},
                max_batch=int(tree["max_batch"]),
                inputs=_tensors(tree["inputs"]),
                outputs=_tensors(tree["outputs"]),
                coverage=_coverage(tree.get("coverage")),
                on_fault=str(tree.get("on_fault", "failover")),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ProgramRefused(f"{path}: not a package of `proa pack`: {exc!r}") from exc

    def to_json(self) -> str:
        """The text of package.json."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def signatures(self) -> dict[str, ProgramSignature]:
        """By program. Parity programs take and give fp32 under `parity.<name>`."""
        return {name: self._signature(name) for name in self.programs}

    def checked(self, program: str) -> bool:
        """Whether this program's last output is a verdict."""
        return self.coverage is not None and self._shared(program)

    def layers(self) -> tuple[str, ...]:
        """Names of the checked layers, in the order of the verdict's rows."""
        layers = () if self.coverage is None else self.coverage["layers"]
        return tuple(layer["layer"] for layer in layers if layer["scheme"] != "none")

    def _shared(self, program: str) -> bool:
        """Whether this is the file of the deployed program."""
        return self.programs[program].sha256 == self.programs["deployed"].sha256

    def _signature(self, program: str) -> ProgramSignature:
        if program == "deployed":
            return ProgramSignature(
                tuple((t.name, t, t.dtype) for t in self.inputs),
                tuple((t.name, t, t.dtype) for t in self.outputs),
            )
        # The mean of k queries is answered by the deployed program itself, in its own dtype.
        shared = self._shared(program)
        return ProgramSignature(
            tuple((t.name, t, d.dtype if shared else "FP32") for t, d in _coded(self.inputs)),
            tuple((t.name, t, t.dtype) for t, _ in _coded(self.outputs)),
        )


def _tensors(trees: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in trees)


def _coverage(tree: dict[str, Any] | None) -> dict[str, Any] | None:
    if tree is not None and not all({"layer", "scheme"} <= row.keys() for row in tree["layers"]):
        raise KeyError("coverage.layers")
    return tree


def _coded(specs: tuple[TensorSpec, ...]) -> list[tuple[TensorSpec, TensorSpec]]:
    return [(TensorSpec(PARITY_PREFIX + t.name, "FP32", t.shape), t) for t in specs]

"""The only loader of `.pt2` programs. A `.pt2` is code: `load` decides whose code runs here.

First the sha256 that the spec or the package pins, then `archive.read_archive`, then torch, which
gets a new archive made of vetted members and for that time unpickles nothing but plain tensors.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveWriter, _package

import proa_kernels  # noqa: F401  # registers the operators of protected programs
from proa.errors import ProaError, ProgramRefused
from proa.worker.archive import ArchiveLimits, read_archive

log = logging.getLogger(__name__)

# Triton dtype names. BYTES has no tensor: such models are served from a repository.
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
SIGNATURES_MAX = 1024  # shapes that a program remembers having checked
_loading = threading.Lock()  # torch.load is one name for the whole process


class Program:
    """A loaded program. Takes tensors `[batch, ...]` in spec order, returns a tuple of them.

    torch checks the inputs against the exported ranges at each call, which costs a small model
    half of its time; the answer depends on shapes and dtypes only, so new ones alone are checked.
    """

    def __init__(self, module: torch.fx.GraphModule, sha256: str) -> None:
        self._module = module
        self._unchecked = _unchecked(module)
        self._passed: set[tuple[tuple[torch.Size, torch.dtype], ...]] = set()
        self.sha256 = sha256

    def parameters(self) -> list[torch.Tensor]:
        """The weights themselves: who changes one changes the program."""
        return list(self._module.parameters())

    @torch.inference_mode()
    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        signature = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if signature in self._passed:
            return self._unchecked(*inputs)
        outputs = self._module(*inputs)
        if len(self._passed) < SIGNATURES_MAX:
            self._passed.add(signature)
        return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def load(
    path: Path, sha256: str | None, *, device: str = "cpu", limits: ArchiveLimits | None = None
) -> Program:
    """Load the program at `path` onto `device` ("cpu", "cuda:0").

    `sha256`: hex digest the file must have; None only where the caller pins what it finds, as
    `proa pack` does. Runs no code of the file but the graph's operators.
    Raises ProgramRefused, never anything of torch's.
    """
    with named(path):
        program, digest = _exported(path, sha256, limits or ArchiveLimits())
        with torch_errors():
            return Program(_runnable(program, device), digest)


def load_exported(path: Path, sha256: str | None) -> tuple[ExportedProgram, str]:
    """The program at `path` as torch.export has it, to be rewritten, and its sha256 (hex).

    As vetted as what `load` gives. Raises ProgramRefused.
    """
    with named(path):
        return _exported(path, sha256, ArchiveLimits())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Puts the path before what was refused, which stays its cause."""
    try:
        yield
    except ProgramRefused as exc:
        raise ProgramRefused(f"{path}: {exc}") from exc


def _exported(path: Path, sha256: str | None, limits: ArchiveLimits) -> tuple[ExportedProgram, str]:
    content = _read(path, limits)
    digest = _digest(content, sha256)
    return _build(content, limits), digest


def _read(path: Path, limits: ArchiveLimits) -> bytes:
    try:
        if path.stat().st_size > limits.bytes_max:
            raise ProgramRefused(f"{path.stat().st_size} bytes; the limit is {limits.bytes_max}")
        return path.read_bytes()
    except OSError as exc:
        raise ProgramRefused(f"cannot be read: {exc.strerror}") from exc


def _digest(content: bytes, expected: str | None) -> str:
    digest = hashlib.sha256(content).hexdigest()
    if expected is not None and digest != expected.lower():
        raise ProgramRefused(f"its sha256 is {digest}, expected {expected.lower()}")
    return digest


def _build(content: bytes, limits: ArchiveLimits) -> ExportedProgram:
    vetted = read_archive(content, limits)
    with _loading, _no_pickles():
        try:
            if vetted.sample_inputs:
                torch.load(io.BytesIO(vetted.sample_inputs))
        except Exception as exc:
            raise ProgramRefused("its sample inputs need a pickle") from exc
        with torch_errors():
            # What torch.export.load calls; that one turns errors into guesses at an older format.
            loaded = _package.load_pt2(_rewritten(vetted.members))
            return loaded.exported_programs["model"]


@contextmanager
def torch_errors() -> Iterator[None]:
    """Turns what torch raises over a program into ProgramRefused."""
    try:
        yield
    except ProaError:
        raise
    except Exception as exc:
        log.debug("torch cannot rebuild the program", exc_info=True)
        raise ProgramRefused(f"torch cannot rebuild the program: {_line(exc)}") from exc


def _unchecked(module: torch.fx.GraphModule) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The same graph on the same weights, from flat inputs to a flat tuple, without checks."""
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return torch.fx.GraphModule(module, graph).forward


def _runnable(program: ExportedProgram, device: str) -> torch.fx.GraphModule:
    if device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module(check_guards=False)
    assert isinstance(module, torch.fx.GraphModule)
    return module


def _rewritten(members: Mapping[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, data in members.items():
            writer.write_bytes(name, data)
    buffer.seek(0)
    return buffer


@contextmanager
def _no_pickles() -> Iterator[None]:
    """For its duration torch unpickles plain tensors at most, whatever its loader falls back to."""
    original = torch.load

    def load_weights_only(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "weights_only": True})

    torch.load = load_weights_only
    vars(_package)["pickle"] = _NoPickle
    try:
        yield
    finally:
        torch.load = original
        vars(_package)["pickle"] = pickle


class _NoPickle:
    @staticmethod
    def loads(*_args: Any) -> NoReturn:
        raise ProgramRefused("it needs a pickle")


def _line(exc: Exception) -> str:
    """The first line of a foreign error: the rest is advice for torch's own users."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0][:300]


def try_out(
    program: Program, inputs: Sequence[tuple[str, tuple[int, ...]]], batch: int
) -> tuple[torch.Tensor, ...]:
    """Run `program` on zeros of `(dtype, shape without batch)`. Raises ProgramRefused."""
    zeros = [torch.zeros((batch, *shape), dtype=DTYPES[dtype]) for dtype, shape in inputs]
    try:
        return program(*zeros)
    except Exception as exc:
        shapes = ", ".join(f"{dtype} {[batch, *shape]}" for dtype, shape in inputs)
        raise ProgramRefused(f"does not run on zeros of {shapes}: {_line(exc)}") from exc

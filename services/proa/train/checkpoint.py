"""Checkpoints of a training run: safetensors for tensors, JSON for the rest, never a pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """What a run needs to go on: `epoch` is the next one; `tensors` hold weights, the best
    weights and Adam's moments under the prefixes `net.`, `best.` and `adam.`."""

    run: str
    epoch: int = 0
    done: bool = False
    best: float = -1.0
    best_epoch: int = 0
    scores: list[float] = field(default_factory=list)
    tensors: Tensors = field(default_factory=dict)

    def part(self, prefix: str) -> Tensors:
        """The tensors under `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def save(state: State, path: Path) -> None:
    """Write `path`.safetensors and then `path`.json, which names the tensors it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = _with_suffix(path, ".safetensors")
    scratch = _with_suffix(path, ".safetensors.tmp")
    save_file({k: v.detach().contiguous() for k, v in state.tensors.items()}, scratch)
    digest = sha256_of(scratch)
    fields: dict[str, Any] = {k: v for k, v in vars(state).items() if k != "tensors"}
    scratch.replace(tensors)
    write_text(_with_suffix(path, ".json"), json.dumps({**fields, "tensors": digest}))


def load(path: Path, run: str) -> State:
    """The state at `path`; a fresh one where there is none, it is torn, or of another `run`."""
    try:
        fields = json.loads(_with_suffix(path, ".json").read_text(encoding="utf-8"))
        if fields.get("run") != run:
            return State(run)
        tensors = _with_suffix(path, ".safetensors")
        if sha256_of(tensors) != fields.pop("tensors"):
            return State(run)
        return State(**fields, tensors=load_file(tensors))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        return State(run)


def write_text(path: Path, text: str) -> None:
    """Write whole or not at all."""
    scratch = _with_suffix(path, ".tmp")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)

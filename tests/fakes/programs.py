"""Tiny exported torch programs, and specs around them, for tests that pack and serve them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from proa.spec import CodedModel, ModelSpec, ProgramRef, RedundancySpec, TensorSpec

INPUT = TensorSpec("image", "FP32", (1, 4, 4))
OUTPUT = TensorSpec("logits", "FP32", (3,))


class Linear(torch.nn.Module):
    """logits = W flatten(image) (+ b): without b, W is its own parity model of the sum code."""

    def __init__(self, seed: int = 0, *, bias: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 3, bias=bias)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image.flatten(1))


class Perceptron(torch.nn.Module):
    """Two checkable layers, `first` and `second`, with a bias: zeros do not stay zeros."""

    def __init__(self, *, bad: float | None = None, mixed: bool = False) -> None:
        """`bad`: one weight of `second`. `mixed`: after a convolution."""
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = torch.nn.Linear(16, 160), torch.nn.Linear(160, 3)
        self.conv = torch.nn.Conv2d(1, 1, 1) if mixed else torch.nn.Identity()
        if bad is not None:
            with torch.no_grad():
                self.second.weight[1, 2] = bad

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.conv(image).flatten(1))))


class Attentive(torch.nn.Module):
    """Three checkable layers: `rows`, attention between the image's rows, `head`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rows, self.head = torch.nn.Linear(4, 24), torch.nn.Linear(32, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        query, key, value = self.rows(image).chunk(3, -1)  # [B, 1, 4, 8]
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.flatten(1))


class Logarithm(torch.nn.Module):
    """NaN for negative inputs, finite for zeros."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.log(image.flatten(1)[:, :3] + 1.0)


def export(module: torch.nn.Module, path: Path, *, batch_max: int = 4) -> Path:
    """Export `module` of one image input with a dynamic batch axis to the `.pt2` at `path`."""
    batch = torch.export.Dim("batch", min=1, max=batch_max)
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (torch.zeros(2, *INPUT.shape),), dynamic_shapes=({0: batch},)
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return path


def linear_model(folder: Path, *, name: str = "tiny", k: int = 2, max_batch: int = 4) -> CodedModel:
    """A linear model with a perfect parity program for the sum code: reconstruction is exact.

    Files go to `folder`. Both programs have the weights of `Linear(seed=0)`.
    """
    deployed = export(Linear(), folder / "deployed.pt2", batch_max=max_batch)
    parity = export(Linear(), folder / "parity.pt2", batch_max=max_batch)
    return coded_model(folder, deployed, parity, name=name, k=k, max_batch=max_batch)


def coded_model(
    folder: Path,
    deployed: Path,
    parity: Path | None = None,
    *,
    name: str = "tiny",
    k: int = 2,
    max_batch: int = 4,
) -> CodedModel:
    """A spec of `deployed` and, with `parity`, one parity program of the sum code."""
    rows = {k: (ProgramRef(parity, None),)} if parity else {}
    return CodedModel(
        name=name,
        model=ModelSpec(
            inputs=(INPUT,),
            outputs=(OUTPUT,),
            program=ProgramRef(deployed, None),
            max_batch=max_batch,
        ),
        redundancy=RedundancySpec(policy="parity" if parity else "none", k=k, r=1, parity=rows),
        path=folder / "spec.yaml",
    )


def write_tiny_spec(
    folder: Path,
    *,
    redundancy: Mapping[str, Any] | None = None,
    protection: Mapping[str, Any] | None = None,
) -> Path:
    """`tiny`, a linear model that is its own parity model: reconstructions are exact.

    `redundancy`: changes of that section. `protection`: that section.
    """
    export(Linear(), folder / "deployed.pt2")
    tensors = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in (INPUT, OUTPUT)]
    document = {
        "apiVersion": "proa.dev/v1alpha1",
        "kind": "CodedModel",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {
                "program": "deployed.pt2", "maxBatch": 4,
                "inputs": tensors[:1], "outputs": tensors[1:],
            },
            "redundancy": {
                "policy": "auto", "parity": {"2": ["deployed.pt2"]}, "placement": "pod",
                **(redundancy or {}),
            },
            **({"protection": dict(protection)} if protection else {}),
        },
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path

"""The networks of benchmarks/abft.py, in plain torch and fp32, with seeded weights.

Batch norms are folded into the convolutions, as in deployment: an unfolded one would make the
unprotected network slower, and the checks look cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Network:
    """`make` builds it; `shape`: of one input, without the batch axis. `small`: one that is quick,
    of the same structure."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    small: tuple[int, ...]

    def exported(self, *, small: bool = False) -> torch.export.ExportedProgram:
        """Its program, for batches of 1 to 8."""
        torch.manual_seed(0)
        shape = self.small if small else self.shape
        batch = torch.export.Dim("batch", min=1, max=8)
        return torch.export.export(
            self.make().eval(), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},)
        )


class Block(nn.Module):
    """A residual block (He et al. 2015): two 3x3 convolutions, or with `deep` 1x1, 3x3, 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, *, deep: bool) -> None:
        super().__init__()
        self.outputs = outputs = 4 * width if deep else width
        if deep:
            self.body = nn.Sequential(
                nn.Conv2d(inputs, width, 1), nn.ReLU(),
                nn.Conv2d(width, width, 3, stride, 1), nn.ReLU(),
                nn.Conv2d(width, outputs, 1),
            )  # fmt: skip
        else:
            self.body = nn.Sequential(
                nn.Conv2d(inputs, width, 3, stride, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)
            )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """`counts`: blocks of the four stages."""

    def __init__(self, counts: Sequence[int], *, deep: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)
        )
        blocks, inputs = [], 64
        for stage, count in enumerate(counts):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Block(inputs, 64 << stage, stride, deep=deep))
                inputs = blocks[-1].outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return last


class TransformerBlock(nn.Module):
    """Norm first, as GPT-2 and ViT-B have it: d 768, 12 heads, MLP 3072."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        last: torch.Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return last


class Mlp(nn.Module):
    """Linear layers with ReLU in between."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k, n) for k, n in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = torch.relu(layer(x))
        found: torch.Tensor = last(x)
        return found


NETWORKS: Mapping[str, Network] = {
    "dlrm-bottom": Network(lambda: Mlp(13, 512, 256, 64), (13,), (13,)),
    "dlrm-top": Network(lambda: Mlp(512, 512, 256, 1), (512,), (512,)),
    "transformer-block": Network(TransformerBlock, (128, 768), (8, 768)),
    "resnet-18": Network(lambda: ResNet((2, 2, 2, 2), deep=False), (3, 224, 224), (3, 32, 32)),
    "resnet-50": Network(lambda: ResNet((3, 4, 6, 3), deep=True), (3, 224, 224), (3, 32, 32)),
}

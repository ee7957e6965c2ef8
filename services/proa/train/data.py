"""Queries to train on: the digits of scikit-learn, or a user's .npz file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as fn

from proa.errors import InvalidRequest
from proa.spec import TensorSpec

Array = NDArray[Any]
Arrays = Mapping[str, Array]

# Pixels of load_digits are 0 to 16. Served is the normalised form, so that nobody normalises twice.
DIGITS_MEAN, DIGITS_STD = 4.884, 6.017
DIGITS_BACKGROUND = -DIGITS_MEAN / DIGITS_STD
HELD_OUT = 360
VALIDATION = 140
SPLIT_SEED = 0


@dataclass(frozen=True)
class Labelled:
    """`images` FP32 [n, 1, 8, 8], normalised; `labels` int64 [n]."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, which: Array) -> Labelled:
        return Labelled(self.images[which], self.labels[which])


@dataclass(frozen=True)
class Split:
    """`held_out` is for measurements only: neither trained on nor used to stop early."""

    train: Labelled
    validation: Labelled
    held_out: Labelled


def digits() -> Split:
    """The 1,797 handwritten digits of scikit-learn, split the same way for every training seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = ((found.images - DIGITS_MEAN) / DIGITS_STD).astype(np.float32)[:, None]
    return split(Labelled(images, found.target.astype(np.int64)))


def split(data: Labelled, held_out: int = HELD_OUT, validation: int = VALIDATION) -> Split:
    """A random split of `data` with a fixed seed."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data))
    return Split(
        held_out=data.take(order[:held_out]),
        validation=data.take(order[held_out : held_out + validation]),
        train=data.take(order[held_out + validation :]),
    )


def augment(
    images: torch.Tensor, generator: torch.Generator, background: float = DIGITS_BACKGROUND
) -> torch.Tensor:
    """Each image [n, c, h, w] a little turned, scaled, sheared and shifted: at most 8 degrees,
    8 %, 0.07, and 0.7 (across) and 0.3 (down) pixels of 8."""
    n = len(images)

    def uniform(limit: float) -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * limit

    angle = uniform(0.14)
    scale_x, scale_y = 1 + uniform(0.08), 1 + uniform(0.08)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = angle.cos() * scale_x
    theta[:, 0, 1] = -angle.sin() * scale_y + uniform(0.07)
    theta[:, 1, 0] = angle.sin() * scale_x
    theta[:, 1, 1] = angle.cos() * scale_y
    theta[:, 0, 2], theta[:, 1, 2] = uniform(0.17), uniform(0.08)
    grid = fn.affine_grid(theta, list(images.shape), align_corners=False)
    return fn.grid_sample(images - background, grid, align_corners=False) + background


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file of one length. Never unpickles. Errors: InvalidRequest."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as exc:
        raise InvalidRequest(f"{path}: not a readable .npz file: {exc}") from exc
    lengths = {name: len(value) if value.ndim else 0 for name, value in found.items()}
    if not lengths or len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise InvalidRequest(f"{path}: arrays of one length are needed, it has {lengths}")
    return found


def queries_of(arrays: Arrays, inputs: Sequence[TensorSpec], where: str) -> dict[str, Array]:
    """The arrays named after the model's inputs; `images` stands for an only input.

    Errors: InvalidRequest names the input, the expected and the given shape.
    """
    found: dict[str, Array] = {}
    for spec in inputs:
        alias = "images" if len(inputs) == 1 and spec.name not in arrays else spec.name
        if alias not in arrays:
            raise InvalidRequest(f"{where}: no array {spec.name!r}; it has {', '.join(arrays)}")
        value = arrays[alias]
        if value.shape[1:] != spec.shape:
            raise InvalidRequest(
                f"{where}: {alias!r} holds queries of shape {list(value.shape[1:])},"
                f" the model takes {list(spec.shape)}"
            )
        found[spec.name] = value
    return found

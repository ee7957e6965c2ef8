"""What is made once of constant tensors, and made anew when one of them has changed.

Many tiny operations on a layer's checksum and bias cost more than the check of a small layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from typing import Generic, TypeVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

Made = TypeVar("Made")


class Memo(Generic[Made]):
    """Keeps what was made of a tensor for as long as that lives."""

    def __init__(self) -> None:
        self._kept: MutableMapping[torch.Tensor, _Kept[Made]] = WeakTensorKeyDictionary()

    def of(
        self,
        make: Callable[[], Made],
        first: torch.Tensor,
        second: torch.Tensor | None = None,
        key: Hashable = None,
    ) -> Made:
        """What `make` gives, of these two tensors and `key`; the last one made of `first`."""
        kept = self._kept.get(first)
        if kept is None or not kept.holds(first, second, key):
            with torch.inference_mode(False), torch.no_grad():  # made to outlive the mode
                kept = self._kept[first] = _Kept(make(), first, second, key)
        return kept.made


class _Kept(Generic[Made]):
    def __init__(
        self, made: Made, first: torch.Tensor, second: torch.Tensor | None, key: Hashable
    ) -> None:
        self.made = made
        # `first` itself would never die.
        self._first, self._second, self._other, self._key = (
            _seen(first), None if second is None else _seen(second), second, key
        )  # fmt: skip

    def holds(self, first: torch.Tensor, second: torch.Tensor | None, key: Hashable) -> bool:
        return (
            self._key == key
            and second is self._other
            and _same(first, self._first)
            and (second is None or _same(second, self._second))
        )


_Seen = int | torch.Tensor


def _seen(tensor: torch.Tensor) -> _Seen:
    """The number of changes so far; the values where torch counts none (inference tensors)."""
    if tensor.is_inference():
        return tensor.detach().clone()
    return tensor._version  # noqa: SLF001  # torch has no public name for it


def _same(tensor: torch.Tensor, seen: _Seen | None) -> bool:
    if isinstance(seen, torch.Tensor):
        return torch.equal(tensor, seen)
    return tensor._version == seen  # noqa: SLF001

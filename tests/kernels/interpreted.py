"""Triton's CPU interpreter: import this before any kernel. It multiplies bf16 wrongly.

What Triton's decorators make is decided at its import, so it happens here, under the variable that
asks for the interpreter; `interpreting` keeps it set while kernels run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "TRITON_INTERPRET"


@contextmanager
def interpreting() -> Iterator[None]:
    """TRITON_INTERPRET=1 for its duration."""
    before = os.environ.get(_NAME)
    os.environ[_NAME] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NAME]
        else:
            os.environ[_NAME] = before


with interpreting():
    import triton.language as tl

    from proa_kernels.linear import gpu as linear_gpu

__all__ = ["interpreting", "linear_gpu"]

assert not hasattr(tl.sum, "cache_key"), "Triton was imported before, without its interpreter"

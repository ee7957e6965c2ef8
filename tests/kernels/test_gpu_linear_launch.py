"""What is decided before a launch: sizes of blocks, and the checksum's columns for kernels."""

from __future__ import annotations

import pytest
import torch

from kernels.matrices import operands
from proa_kernels.checksum import joined, take
from proa_kernels.errors import KernelError
from proa_kernels.gpu.columns import packed
from proa_kernels.gpu.launch import candidates, choose, shape_class

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 65, 4096])
@pytest.mark.parametrize("outputs", [1, 16, 17, 100, 128, 5000])
def test_a_block_is_at_most_a_tile_wide_and_a_power_of_two(
    rows: int, outputs: int, dtype: torch.dtype
) -> None:
    found = candidates(rows, outputs, dtype)
    assert found[0] == choose(rows, outputs, dtype)
    assert len(set(found)) == len(found) > 3
    for one in found:
        assert 16 <= one.block_n <= 128
        assert one.block_n >= min(outputs, 128), "one program makes a whole tile"
        for size in (one.block_m, one.block_n, one.block_k, one.warps, one.thin_tiles):
            assert size & (size - 1) == 0
        assert one.block_k >= 8
    assert shape_class(rows) == ("decode" if rows <= 16 else "small" if rows <= 64 else "large")


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_columns_are_the_checksum(dtype: torch.dtype) -> None:
    weight = operands("n01", (1, 300, 40), dtype)[1]
    check = take(weight)
    found = packed(check.columns, dtype)
    assert (found.values.dtype, found.values.shape[:2]) == (dtype, (3, 40))
    assert (found.used, found.width) == ((2, 2) if dtype == torch.float32 else (6, 8))
    assert not found.values[:, :, found.used :].any()
    parts = found.values[:, :, : found.used].double().view(3, 40, -1, 2).sum(2)  # [T, K, 2]
    exact = joined(check.columns, torch.float64).view(40, 3, 2).permute(1, 0, 2)
    error = (parts * found.units[:, None].double() - exact).abs().amax((1, 2))
    assert bool((error <= exact.abs().amax((1, 2)) * 2.0**-33).all())


def test_packing_is_done_once_and_again_after_a_change() -> None:
    check = take(operands("n01", (1, 130, 40))[1])
    first = packed(check.columns, torch.float32)
    assert packed(check.columns, torch.float32) is first
    check.columns[0, 3, 1] += 1.0
    changed = packed(check.columns, torch.float32)
    assert float((changed.values - first.values).abs().sum()) == pytest.approx(1.0, rel=1e-4)


def test_packing_is_refused_within_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would be of the graph's own memory."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pytest.raises(KernelError, match="before capturing"):
        packed(torch.zeros(1, 4, 2), torch.float32)

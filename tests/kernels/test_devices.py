"""What is on a GPU stays there: no tensor of the host meets one of the device. Without a GPU.

torch's fake tensors have a device and no values, and refuse to mix devices as CUDA does. Where a
function asks for a value (`float`, `bool`, `tolist`) it gets `_Answers`' one: 0 for clean data, 2
so that everything is suspicious.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.interpreted import interpreting, linear_gpu
from kernels.matrices import operands
from proa_kernels import checksum, verdict
from proa_kernels.attention import checked_attention, dup_attention
from proa_kernels.bmm import checked_bmm, dup_bmm
from proa_kernels.bmm.reference import _sums as bmm_sums
from proa_kernels.conv import Geometry
from proa_kernels.conv import checksum as conv_checksum
from proa_kernels.conv.ops import checked_conv2d
from proa_kernels.dup import dup_linear
from proa_kernels.emulated import check, emulated_product, reference
from proa_kernels.gpu import call
from proa_kernels.gpu.columns import packed
from proa_kernels.integer import checked_int_mm, checked_product, take
from proa_kernels.linear import checked_linear
from proa_kernels.rowcheck import screen

with interpreting():
    from proa_kernels.conv import gpu as conv_gpu
    from proa_kernels.emulated import gpu as emulated_gpu

CUDA = torch.device("meta")  # stands for it: without CUDA no tensor can be indexed there
CLEAN, SUSPICIOUS = 0, 2
aten = torch.ops.aten


class _Answers(TorchDispatchMode):
    """Gives values where fake tensors have none, and keeps what `_int_mm` was asked for."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value
        self.products: list[tuple[int, int, int]] = []

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func is aten._local_scalar_dense.default:
            kind = {torch.bool: bool, torch.float32: float, torch.float64: float}
            return kind.get(args[0].dtype, lambda _: 0)(self.value)  # integers are places
        if func is aten.equal.default:
            assert args[0].device == args[1].device
            return not self.value
        if func is aten.nonzero.default:  # one place is found
            return args[0].new_zeros((1, args[0].dim()), dtype=torch.int64)
        if func is aten.index.Tensor:
            flags = [torch.bool == one.dtype for one in args[1] if one is not None]
            if any(flags):
                where = [None if one is None else one.new_zeros(1).long() for one in args[1]]
                return func(args[0], where)
        if func is aten._int_mm.default:
            self.products.append((*args[0].shape, args[1].shape[1]))
        return func(*args, **(kwargs or {}))


class _Launch:
    """Stands for a kernel: notes where its tensors are."""

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return self._launched

    def _launched(self, *args: object, **_options: object) -> None:
        found = {one.device for one in args if isinstance(one, torch.Tensor)}
        assert found == {CUDA}, found


_MADE = torch.tensor


def _tensor(values: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
    """`torch.tensor` gives no fake one where asked for a device."""
    return _MADE(values, dtype=dtype).to(device)


@pytest.fixture(params=[CLEAN, SUSPICIOUS], ids=["clean", "suspicious"])
def answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Answers]:
    """Within: tensors are fake. As on a machine with one GPU, of which nothing is captured."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch, "tensor", _tensor)
    for module, names in (
        (call, ("product_kernel", "thin_kernel", "settle_kernel")),
        (emulated_gpu, ("_scan", "_split", "_product", "_ieee")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, _Launch())
    screen._ramp.cache_clear()
    with FakeTensorMode(), _Answers(request.param) as mode:
        yield mode
    screen._ramp.cache_clear()  # it has fake tensors now


def gpu(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(sizes, dtype=dtype, device=CUDA)


def on_gpu(*found: Any) -> None:
    for one in found:
        for tensor in one if isinstance(one, tuple | list) else [one]:
            assert tensor.device == CUDA


def test_what_mixes_devices_is_refused(answers: _Answers) -> None:
    """Else this file would prove nothing."""
    with pytest.raises(Exception, match="same device"):
        gpu(2, 3) / torch.tensor([[1], [2]])
    assert bool(gpu(1).max() > 0) == bool(answers.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_checksums(answers: _Answers, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from gpu_abft.variants import columns_of

    on_gpu(columns_of(gpu(300, 40, dtype=dtype)))
    monkeypatch.setattr(checksum, "key_of", lambda _: "")  # of values on the host
    answers.value = 1  # all is finite
    found = checksum.take(gpu(300, 40, dtype=dtype))
    on_gpu(checksum.ramp(3, dtype, CUDA), found.columns, found.scales)
    on_gpu(packed(found.columns, dtype).values, packed(found.columns, dtype).units)
    conv = conv_checksum.take(gpu(8, 4, 3, 3, dtype=dtype), 2)
    on_gpu(conv.columns, conv.scales)


def test_verdicts(answers: _Answers) -> None:
    del answers
    on_gpu(verdict.nothing(CUDA), verdict.merge([gpu(8, dtype=torch.float64)] * 2))
    assert verdict.merge([]).shape == (1, verdict.WIDTH)


def test_products_of_computed_matrices(answers: _Answers) -> None:
    del answers
    on_gpu(*bmm_sums(gpu(2, 5, 300)))
    on_gpu(*checked_bmm(gpu(2, 4, 5), gpu(2, 5, 300), gpu(300), correct=True))
    on_gpu(*checked_bmm(gpu(2, 4, 0), gpu(2, 0, 300)))  # sums over nothing
    on_gpu(*dup_bmm(gpu(2, 4, 5), gpu(2, 5, 300), correct=True))


@pytest.mark.parametrize("masked", ["no", "bool", "float", "causal"])
def test_attention(answers: _Answers, masked: str) -> None:
    del answers
    q, k, v = gpu(2, 4, 6, 8), gpu(2, 2, 7, 8), gpu(2, 2, 7, 8)
    dtype = torch.bool if masked == "bool" else torch.float32
    mask = gpu(6, 7, dtype=dtype) if masked in ("bool", "float") else None
    on_gpu(*checked_attention(q, k, v, mask, causal=masked == "causal", correct=True))
    on_gpu(*dup_attention(q, k, v, mask, causal=masked == "causal"))


def test_the_reference_on_a_gpu(answers: _Answers) -> None:
    """Of linear layers and convolutions, in plain torch: campaigns and `dup` use it."""
    del answers
    x, weight, bias = gpu(6, 40), gpu(300, 40), gpu(300)
    columns, scales = gpu(1, 40, 6), gpu(2, 3, 3, dtype=torch.float64)
    on_gpu(*checked_linear(x, weight, bias, columns, scales, correct=True))
    on_gpu(*dup_linear(x, weight, bias, correct=True))
    options = {"stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "correct": True}
    for groups, outputs in ((1, 300), (1, 5), (2, 8), (4, 4)):
        columns = gpu(1, 4 // groups * 9, 2 * groups * -(-outputs // groups // 128))
        scales = gpu(2, columns.shape[2] // 2, 3, dtype=torch.float64)
        kernel = gpu(outputs, 4 // groups, 3, 3)
        args = (gpu(1, 4, 6, 6), kernel, gpu(outputs), columns, scales)
        on_gpu(*checked_conv2d(*args, groups=groups, **options))  # type: ignore[arg-type]


def test_the_kernels_of_a_gpu(answers: _Answers) -> None:
    del answers
    half = torch.bfloat16
    x, weight, bias = gpu(200, 40, dtype=half), gpu(300, 40, dtype=half), gpu(300, dtype=half)
    columns, scales = gpu(3, 40, 6, dtype=half), gpu(2, 3, 3, dtype=torch.float64)
    for scheme in ("tile", "fused"):
        on_gpu(*linear_gpu.checked_linear(x, weight, bias, columns, scales, scheme=scheme))
    on_gpu(*linear_gpu.checked_linear(x[:0], weight, bias, columns, scales))
    x, weight = gpu(2, 8, 6, 6, dtype=half), gpu(300, 4, 3, 3, dtype=half)
    columns, scales = gpu(3, 36, 8, dtype=half), gpu(2, 4, 3, dtype=torch.float64)
    options = {"stride": [1, 1], "padding": [1] * 4, "dilation": [1, 1], "groups": 2}
    walk = Geometry.of(*(options[name] for name in options))  # type: ignore[arg-type]
    out = conv_gpu.empty_result(x, weight, walk)
    product = conv_gpu.product_of(1, x, weight, bias, columns, scales, walk, out)
    on_gpu(product.x, product.weight, product.columns, product.scales, product.addend, product.out)
    for one in (x, x[:0]):
        on_gpu(*conv_gpu.checked_conv2d(one, weight, bias, columns, scales, **options))  # type: ignore[arg-type]


def test_emulated_products(answers: _Answers) -> None:
    del answers
    a, b = gpu(6, 40), gpu(40, 300)
    columns, scales = gpu(1, 40, 6), gpu(2, 3, 3, dtype=torch.float64)
    on_gpu(*emulated_gpu.emulated_product(a, check.widened(b, columns), 6))
    on_gpu(*check.judged(a, gpu(6, 306), scales, 6), *check.judged(a[:0], gpu(0, 306), scales, 6))
    on_gpu(*emulated_product(a, b, 6), reference.joined(reference.split(a)))


@pytest.mark.parametrize("sizes", [(32, 16, 24), (3, 13, 5), (17, 8, 1), (40, 129, 300)])
def test_int8_products_are_of_sizes_that_cublas_takes(
    answers: _Answers, sizes: tuple[int, int, int]
) -> None:
    """And with the 5 columns of each tile's check, whatever the layer's own sizes are."""
    rows, inner, outputs = sizes
    x, weight = gpu(rows, inner, dtype=torch.int8), gpu(inner, outputs, dtype=torch.int8)
    columns = gpu(inner, 5 * -(-outputs // 128), dtype=torch.int8)
    out, found = checked_int_mm(x, weight, columns, correct=True)
    on_gpu(out, found)
    assert out.shape == (rows, outputs)
    assert out.is_contiguous()
    assert len(answers.products) == (2 if answers.value == CLEAN else 5)
    for rows_all, inner_all, outputs_all in answers.products:
        assert rows_all > 16
        assert inner_all % 8 == outputs_all % 8 == 0
    answers.value = CLEAN  # nothing is left of a sum in digits
    on_gpu(take(weight))


def test_padded_int8_products_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weight = (
        torch.randint(-128, 128, sizes, generator=generator, dtype=torch.int8)
        for sizes in ((3, 13), (13, 5))
    )
    want, clean = checked_product(x, weight, None, correct=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    out, found = checked_product(x, weight, None, correct=False)
    assert torch.equal(out, want)
    assert torch.equal(found, clean)


def test_check_vectors_have_the_same_bits_as_ever() -> None:
    """Checksums are in packed models: another bit would be another checksum."""
    steps = [sign * size for size in range(127, 0, -2) for sign in (1, -1)]
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for width in (1, 7, 128):
            ramp = checksum.ramp(width, dtype, torch.device("cpu"))
            assert ramp.dtype == dtype
            assert ramp[0].tolist() == [1.0] * width
            assert ramp[1].tolist() == [step / 128 for step in steps[:width]]


def test_a_causal_mask_is_what_it_was() -> None:
    q, k, v = (operands("n01", (6, 1, 8), seed=at)[0].view(1, 6, 8) for at in range(3))
    out, _ = checked_attention(q, k, v, causal=True)
    hidden = torch.full((6, 6), -math.inf).triu(1)
    want = torch.softmax(q @ k.mT / math.sqrt(8) + hidden, -1) @ v
    torch.testing.assert_close(out, want)


@pytest.mark.parametrize("kind", ["conv", "emulated"])
def test_kernels_run_on_the_device_of_their_tensors(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the current one: it may be another GPU, whose memory this is not."""
    from proa_kernels.conv import ops as conv_ops
    from proa_kernels.emulated import ops as emulated_ops

    inside: list[str] = []

    class Guard:
        def __init__(self, tensor: torch.Tensor) -> None:
            assert isinstance(tensor, torch.Tensor)

        def __enter__(self) -> None:
            inside.append("entered")

        def __exit__(self, *_: object) -> None:
            inside.append("left")

    def launched(*_args: object, **_options: object) -> tuple[torch.Tensor, torch.Tensor]:
        inside.append("launched")
        return torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    monkeypatch.setattr(conv_gpu, "checked_conv2d", launched)
    monkeypatch.setattr(emulated_gpu, "emulated_product", launched)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    if kind == "conv":
        conv_ops._cuda(torch.zeros(1, 1, 1, 1))
    else:
        emulated_ops._product(torch.zeros(1, 1), torch.zeros(1, 1), 6)
    assert inside == ["entered", "launched", "left"]

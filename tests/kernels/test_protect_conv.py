"""`protect` on networks of convolutions: as exported, decomposed, saved and loaded."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from proa_kernels import ABFTConv2d, KernelError, Plan, PlanRefused, Verdict, protect
from proa_kernels.injection import flip, injecting


class Residual(nn.Module):
    """A small network with what residual ones have, and grouped and depthwise kernels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.same = nn.Conv2d(16, 16, (3, 2), padding="same")
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32)
        self.point = nn.Conv2d(32, 136, 1)
        self.short = nn.Conv2d(16, 136, 1, stride=1, bias=False)
        self.rows = nn.Conv1d(136, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.same(x)
        y = self.point(self.depthwise(torch.relu(self.grouped(x))))
        y = torch.relu(y + self.short(x))
        return self.head(self.rows(y.mean(2)).mean(2))


NAMES = ["stem", "same", "grouped", "depthwise", "point", "short", "rows", "head"]


def program(*, decomposed: bool = False, dtype: torch.dtype = torch.float32) -> ExportedProgram:
    module = Residual().eval().to(dtype)
    with torch.no_grad():
        made = torch.export.export(
            module, (images(2).to(dtype),), dynamic_shapes=({0: Dim.DYNAMIC},)
        )
    return made.run_decompositions() if decomposed else made


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 20, 18, generator=torch.Generator().manual_seed(count))


def run(made: ExportedProgram, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        return made.module(check_guards=False)(x)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("scheme", "decomposed"), [("row", False), ("row", True), ("tile", False), ("dup", False)]
)
def test_the_same_bits_and_a_verdict(scheme: str, decomposed: bool) -> None:
    made = program(decomposed=decomposed)
    protected, coverage = protect(made, Plan(mode="correct", default=scheme, strict=True))
    assert sorted(layer.layer for layer in coverage.checked) == sorted(NAMES)
    assert {layer.scheme for layer in coverage.layers} == {scheme}
    assert (coverage.share, coverage.shares) == (1.0, {"gemm": 1.0})
    assert protected.state_dict.keys() == made.state_dict.keys()
    buffer = io.BytesIO()
    torch.export.save(protected, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer)
    for count in (1, 3):  # the exported batch was 2
        for one in (protected, loaded):
            out, found = run(one, images(count))
            assert torch.equal(out, run(made, images(count)))
            assert (Verdict.read(found).status, len(found)) == ("clean", 9)


def test_the_report_has_shapes_and_flops() -> None:
    coverage = protect(program(), Plan(), batch=3)[1]
    by_name = {layer.layer: layer for layer in coverage.layers}
    assert by_name["stem"].weight == (16, 3, 7, 7)
    assert by_name["stem"].flops == 2 * 3 * 16 * 3 * 49 * 10 * 9
    assert by_name["grouped"].flops == 2 * 3 * 32 * 4 * 9 * 10 * 9
    assert by_name["rows"].flops == 2 * 3 * 8 * 136 * 3 * 9
    assert by_name["rows"].op == "conv1d"


@pytest.mark.parametrize("padding", [0, 1, (0, 2)])
@pytest.mark.parametrize("kernel", [1, (1, 2)])
def test_one_tap_with_padding_is_left_as_it_is(kernel: Any, padding: Any) -> None:
    """torch's own convolution crashes on some of them."""
    layer = nn.Conv2d(3, 4, kernel, padding=padding)
    made = torch.export.export(nn.Sequential(layer), (images(1),))
    _, coverage = protect(made, Plan())
    safe = kernel != 1 or padding == 0
    assert bool(coverage.checked) is safe
    if not safe:
        assert "one tap with padding" in coverage.unchecked[0].reason
        with pytest.raises(KernelError, match="one tap with padding"):
            ABFTConv2d(layer)


def test_half_types() -> None:
    made = program(dtype=torch.bfloat16)
    protected, _ = protect(made, Plan(strict=True))
    out, found = run(protected, images(2).bfloat16())
    torch.testing.assert_close(out, run(made, images(2).bfloat16()), rtol=0.1, atol=0.02)
    assert Verdict.read(found).status == "clean"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["row", "dup"])
def test_a_transient_fault_in_each_layer(name: str, scheme: str) -> None:
    made = program()
    protected, coverage = protect(made, Plan(mode="correct", default=scheme))
    at = [layer.layer for layer in coverage.checked].index(name)
    calls = iter(range(1000))

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0 and next(calls) == at:
            acc[(0, 1, *[-1] * (acc.dim() - 2))] += 100.0

    with injecting(tamper):
        out, found = run(protected, images(3))
    verdict = Verdict.read(found)
    assert (verdict.status, verdict.layer, verdict.column) == ("corrected", at, 1)
    assert torch.equal(out, run(made, images(3)))


def test_a_kernel_that_changes_in_memory() -> None:
    protected, coverage = protect(program(), Plan(mode="correct"))
    module = protected.module()
    with torch.inference_mode():
        flip(dict(module.named_parameters())["depthwise.weight"].detach(), (7, 0, 1, 1), 1 << 29)
        verdict = Verdict.read(module(images(2))[1])
    assert (verdict.status, verdict.column) == ("failed", 7)
    assert coverage.checked[verdict.layer].layer == "depthwise"


def test_dup_does_not_see_a_kernel_that_changes() -> None:
    module = protect(program(), Plan(default="dup"))[0].module()
    with torch.inference_mode():
        flip(dict(module.named_parameters())["stem.weight"].detach(), (7, 0, 1, 1), 1 << 29)
        assert Verdict.read(module(images(2))[1]).status == "clean"


def test_schemes_layer_by_layer() -> None:
    plan = Plan(layers={"stem": "dup", "rows": "none", "head": "tile"})
    protected, coverage = protect(program(), plan)
    schemes = {layer.layer: layer.scheme for layer in coverage.layers}
    assert (schemes["stem"], schemes["rows"], schemes["head"]) == ("dup", "none", "tile")
    assert (schemes["same"], coverage.share < 1.0) == ("row", True)
    keys = {layer.layer: layer.key for layer in coverage.checked}
    assert (keys["stem"], len(keys["head"])) == ("", 32)
    assert Verdict.read(run(protected, images(2))[1]).status == "clean"


class Upsampling(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layer = make()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 5)),
        (lambda: nn.Conv3d(3, 4, 3), (2, 3, 5, 5, 5)),
        (lambda: nn.Conv2d(3, 4, 3, dtype=torch.float64), (2, 3, 5, 5)),
    ],
)
def test_other_convolutions_are_named(
    make: Callable[[], nn.Module], shape: tuple[int, ...], decomposed: bool
) -> None:
    module = Upsampling(make).eval()
    x = torch.zeros(shape, dtype=next(module.parameters()).dtype)
    with torch.no_grad():
        made = torch.export.export(module, (x,))
    made = made.run_decompositions() if decomposed else made
    coverage = protect(made, Plan())[1]
    assert [len(coverage.checked), len(coverage.unchecked)] == [0, 1]
    assert coverage.unchecked[0].reason
    with pytest.raises(PlanRefused, match="strict"):
        protect(made, Plan(strict=True))

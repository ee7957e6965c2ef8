"""The operator as torch sees it, its eager face, and that production has no way to inject."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import proa_kernels
from kernels.matrices import operands
from proa_kernels import ABFTLinear, KernelError, Verdict, WeightsRefused
from proa_kernels.checksum import take
from proa_kernels.injection import flip, injecting
from proa_kernels.verdict import WIDTH, merge

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OP = torch.ops.proa.checked_linear
PACKAGE = Path(proa_kernels.__file__).parent


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_torch_accepts_the_operator(dtype: torch.dtype, rows: int) -> None:
    """Schema, fake kernel and dynamic shapes agree with what the kernel does."""
    x, weight = operands("n01", (rows, 130, 24), dtype)
    check = take(weight)
    options = {"inner_first": False, "alpha": 1.0, "beta": 1.0, "correct": True}
    args = (x, weight, torch.ones(130, dtype=dtype), check.columns, check.scales)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OP.default, args, options, test_utils=tests)
    verdicts = ([OP(*args, **options)[1]],)
    torch.library.opcheck(torch.ops.proa.merge_verdicts.default, verdicts, test_utils=tests)


def test_the_fake_kernel_refuses_what_does_not_fit() -> None:
    x, weight = operands("n01", (2, 8, 24))
    check = take(weight)
    options = {"inner_first": False, "alpha": 1.0, "beta": 1.0, "correct": True}
    meta = [one.to("meta") for one in (x, weight, check.columns, check.scales)]
    for broken in (
        (meta[0].bfloat16(), *meta[1:]),
        (meta[0][:, :9], *meta[1:]),
        (*meta[:2], meta[2][:, :9], meta[3]),
        (*meta[:3], meta[3][:, :0]),
    ):
        one, two, *rest = broken
        with pytest.raises(KernelError):
            OP(one, two, None, *rest, **options)


def test_production_cannot_inject() -> None:
    """No hook in the schema; the module that replaces the kernel is imported by none of ours."""
    assert "tamper" not in str(OP.default._schema)
    importers = [
        path
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom | ast.Import) and "injection" in ast.unparse(node)
    ]
    assert importers == []


def test_merging_names_the_first_layer_that_alarms() -> None:
    calm = torch.tensor([10, 0, 0, 1, 9.0, -1, -1, -1], dtype=torch.float64)
    alarm = torch.tensor([20, 2, 1, 0, 3.0, -1, 4, 5], dtype=torch.float64)
    later = torch.tensor([20, 2, 1, 0, 5.0, -1, 6, 7], dtype=torch.float64)
    merged = merge([calm, alarm, later, calm])
    assert merged.shape == (5, WIDTH)
    assert Verdict.read(merged) == Verdict(60, 4, 2, 2, 9.0, 1, 4, 5)
    assert [one.layer for one in Verdict.read_layers(merged)] == [0, 1, 2, 3]
    quiet = merge([calm, calm])
    assert (Verdict.read(quiet).layer, Verdict.read(quiet).status) == (0, "clean")
    assert Verdict.read(merge([])) == Verdict(0, 0, 0, 0, 0.0, -1, -1, -1)


def linear(dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Linear:
    made = torch.nn.Linear(40, 130, dtype=dtype)
    with torch.no_grad():
        made.weight.copy_(operands("n01", (1, 130, 40), dtype, seed=seed)[1])
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_module_is_a_linear_layer(dtype: torch.dtype) -> None:
    plain = linear(dtype)
    module = ABFTLinear(plain)
    x = operands("n01", (6, 1, 40), dtype)[0].view(2, 3, 40)
    torch.testing.assert_close(module(x), plain(x))
    assert module.last().status == "clean"
    assert module.last().checks == 12
    assert module.state_dict().keys() == plain.state_dict().keys()


def test_the_module_takes_a_new_checksum_when_it_is_loaded() -> None:
    module, x = ABFTLinear(linear()), operands("n01", (3, 1, 40))[0]
    key = module.key
    module.load_state_dict(linear(seed=1).state_dict())
    module(x)
    assert module.last().status == "clean"
    assert module.key != key
    flip(module.weight.detach(), (0, 0), 1 << 26)
    module(x)
    assert module.last().status == "failed"
    module.refresh()
    module(x)
    assert module.last().status == "clean"


def test_the_module_corrects() -> None:
    module, x = ABFTLinear(linear(), mode="correct"), operands("n01", (3, 1, 40))[0]
    clean = module(x)

    def tamper(acc: torch.Tensor, attempt: int) -> None:
        if attempt == 0:
            acc[1, 7] = 1e6

    with injecting(tamper):
        assert torch.equal(module(x), clean)
    assert (module.last().status, module.last().row, module.last().column) == ("corrected", 1, 7)
    module(x)
    assert module.last().status == "clean"


def test_the_module_refuses() -> None:
    with pytest.raises(KernelError, match="'repair'"):
        ABFTLinear(linear(), mode="repair")
    with pytest.raises(KernelError, match="float64"):
        ABFTLinear(torch.nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(KernelError, match="nothing was computed"):
        ABFTLinear(linear()).last()
    broken = linear()
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(WeightsRefused):
        ABFTLinear(broken)

"""`protect`: the same program, checked."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from proa.worker import programs
from proa_kernels import Coverage, Plan, PlanRefused, Verdict, WeightsRefused, protect
from proa_kernels.injection import flip, injecting
from proa_kernels.protection import weights_digest

WIDE = 136  # two tiles, the second narrow


class Block(nn.Module):
    """Linear layers, one of them used twice, among what is not checked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = nn.ConvTranspose1d(4, 4, 3, padding=1)
        self.up = nn.Linear(16, WIDE)
        self.down = nn.Linear(WIDE, 16, bias=False)
        self.head = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.spread(x)
        x = self.down(torch.relu(self.up(x))) + self.down(self.up(torch.tanh(x)))
        return x @ self.head


def export(
    module: nn.Module, *inputs: torch.Tensor, dynamic: bool = True, decomposed: bool = False
) -> ExportedProgram:
    shapes = tuple({0: Dim.DYNAMIC} for _ in inputs) if dynamic else None
    with torch.no_grad():
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    return program.run_decompositions() if decomposed else program


def block(dtype: torch.dtype = torch.float32, *, decomposed: bool = False) -> ExportedProgram:
    return export(Block().to(dtype), torch.zeros(2, 4, 16, dtype=dtype), decomposed=decomposed)


def batch(size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, 4, 16, generator=torch.Generator().manual_seed(size)).to(dtype)


def run(program: ExportedProgram, *inputs: torch.Tensor) -> Any:
    with torch.inference_mode():
        return program.module(check_guards=False)(*inputs)


TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("decomposed", [False, True])
def test_the_same_answers_and_a_verdict(dtype: torch.dtype, decomposed: bool) -> None:
    program = block(dtype, decomposed=decomposed)
    protected, coverage = protect(program, Plan())
    names = [layer.layer for layer in coverage.checked]
    assert names == ["up", "down", "up#2", "down#2", "head"]
    assert protected.state_dict.keys() == program.state_dict.keys()
    assert len(protected.constants) == 2 * 3  # used twice, stored once
    for size in (1, 2, 7):  # the exported batch was 2
        expected = run(program, batch(size, dtype))
        out, found = run(protected, batch(size, dtype))
        close = TOLERANCE[dtype]
        torch.testing.assert_close(out, expected, rtol=close, atol=close * float(expected.std()))
        verdict = Verdict.read(found)
        assert found.shape == (6, 8)
        assert (verdict.status, verdict.checks) == ("clean", size * 4 * (2 + 1 + 2 + 1 + 1))
        assert 0.0 < verdict.ratio < 0.6


def test_coverage_says_what_and_why() -> None:
    coverage = protect(block(), Plan(layers={"head": "none"}), batch=3)[1]
    why = {layer.layer: layer.reason for layer in coverage.unchecked}
    assert why == {
        "conv_transpose1d": "no check for this operator in this version",
        "head": "the plan says none",
    }
    flops = {layer.layer: layer.flops for layer in coverage.layers}
    assert flops["up"] == flops["down"] == 2 * 3 * 4 * 16 * WIDE
    assert flops["head"] == 2 * 3 * 4 * 16 * 8
    assert flops["conv_transpose1d"] == 2 * 3 * 4 * 4 * 3 * 16
    checked = sum(flops[name] or 0 for name in ("up", "down", "up#2", "down#2"))
    assert coverage.share == pytest.approx(checked / sum(f or 0 for f in flops.values()))
    assert coverage.to_dict()["layers"][1]["weight"] == (WIDE, 16)


def saved(program: ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def test_the_loader_of_the_worker_takes_it(tmp_path: Path) -> None:
    protected, _ = protect(block(), Plan(mode="correct"))
    path = tmp_path / "protected.pt2"
    path.write_bytes(saved(protected))
    loaded = programs.load(path, None)
    expected = run(protected, batch(3))
    found = loaded(batch(3))
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))


def test_a_loaded_program_can_be_protected() -> None:
    program = torch.export.load(io.BytesIO(saved(block())))
    protected, coverage = protect(program, Plan())
    assert len(coverage.checked) == 5
    assert Verdict.read(run(protected, batch(4))[1]).status == "clean"


def test_an_input_called_as_something_of_python_is() -> None:
    """Every `nn.Sequential` has an input of the name `input`, which a copied graph renames."""
    torch.manual_seed(1)
    program = export(nn.Sequential(nn.Linear(16, WIDE), nn.ReLU(), nn.Linear(WIDE, 4)), batch(3))
    for made in (program, torch.export.load(io.BytesIO(saved(program)))):
        protected, _ = protect(made, Plan())
        loaded = torch.export.load(io.BytesIO(saved(protected)))
        out, found = run(loaded, batch(3))
        assert torch.equal(out, run(made, batch(3)))
        assert Verdict.read(found).status == "clean"


class Shaped(nn.Module):
    """One linear layer, its output in some container."""

    def __init__(self, shape: Callable[[torch.Tensor], Any], weight: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(8, weight)
        self._shape = shape

    def forward(self, x: torch.Tensor) -> Any:
        return self._shape(self.layer(x))


@pytest.mark.parametrize(
    ("shape", "places"),
    [
        (lambda y: y, 2),
        (lambda y: (y,), 2),
        (lambda y: (y, y.relu(), y), 4),
        (lambda y: [y, y + 1.0], 3),
        (lambda y: {"logits": y}, 2),
    ],
)
def test_the_verdict_is_the_last_output(shape: Callable[..., Any], places: int) -> None:
    """Also where the product itself is an output, and more than once."""
    program = export(Shaped(shape), torch.zeros(2, 8))
    protected, _ = protect(program, Plan())
    x = torch.randn(3, 8)
    found = run(protected, x)
    assert len(found) == places
    assert found[-1].shape == (2, 8)
    expected = run(program, x)
    rest = found[:-1] if isinstance(expected, tuple | list) else found[0]
    torch.testing.assert_close(rest, expected)
    again = run(torch.export.load(io.BytesIO(saved(protected))), x)
    torch.testing.assert_close(again, found)


def protected_block(mode: str) -> tuple[Any, Coverage]:
    protected, coverage = protect(block(), Plan(mode=mode))
    return protected.module(), coverage


def test_a_transient_fault_in_one_layer() -> None:
    clean, _ = run(protect(block(), Plan())[0], batch(3))
    for mode in ("detect", "correct"):
        module, coverage = protected_block(mode)
        calls = iter(range(100))

        def tamper(acc: torch.Tensor, attempt: int, calls: Any = calls) -> None:
            if attempt == 0 and next(calls) == 2:
                acc[5, 130] = float("nan")

        with injecting(tamper), torch.inference_mode():
            out, found = module(batch(3))
        verdict = Verdict.read(found)
        assert coverage.checked[verdict.layer].layer == "up#2"
        assert (verdict.row, verdict.column) == (5, 130)
        assert verdict.status == ("corrected" if mode == "correct" else "failed")
        assert torch.equal(out, clean) is (mode == "correct")
        layers = Verdict.read_layers(found)
        assert [one.alarms for one in layers[:3]] == [0, 0, 1]
        # Uncorrected, it is seen again further on, but that is not the cause.
        assert verdict.alarms > 1 if mode == "detect" else verdict.alarms == 1


def test_a_weight_that_changes_in_memory() -> None:
    module, coverage = protected_block("correct")
    with torch.inference_mode():
        assert Verdict.read(module(batch(3))[1]).status == "clean"
        flip(dict(module.named_parameters())["down.weight"].detach(), (3, 100), 1 << 29)
        verdict = Verdict.read(module(batch(3))[1])
    assert (verdict.status, verdict.column) == ("failed", 3)
    assert coverage.checked[verdict.layer].layer.startswith("down")


def test_detect_leaves_the_choice_to_the_plan() -> None:
    protected, coverage = protect(block(), Plan(default="none", layers={"up#2": "row"}))
    assert [layer.layer for layer in coverage.checked] == ["up#2"]
    assert run(protected, batch(2))[1].shape == (2, 8)
    nothing, coverage = protect(block(), Plan(default="none"))
    assert coverage.share == 0.0
    assert torch.equal(run(nothing, batch(2))[0], run(block(), batch(2)))
    assert Verdict.read(run(nothing, batch(2))[1]).status == "clean"


class Nested(nn.Module):
    """A product under autocast is in a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(8, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.inside(x)
        return self.outside(x.float())


def test_products_of_nested_graphs_are_reported() -> None:
    protected, coverage = protect(export(Nested(), torch.zeros(2, 8)), Plan())
    assert [layer.layer for layer in coverage.checked] == ["outside"]
    assert [(one.op, one.reason, one.flops) for one in coverage.unchecked] == [
        ("linear", "inside a nested graph", 2 * 8 * 4)
    ]
    assert Verdict.read(run(protected, torch.randn(5, 8))[1]).status == "clean"


class Inputless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self) -> torch.Tensor:
        return self.layer(torch.ones(2, 8))


def test_a_program_without_inputs() -> None:
    program = export(Inputless(), dynamic=False)
    found = run(protect(program, Plan())[0])
    torch.testing.assert_close(found[0], run(program))


class Operands(nn.Module):
    """Products whose weight is found, or is not, behind what stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(24, 8))
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("table", torch.randn(8, 5), persistent=False)
        self.wide = nn.Linear(8, 3, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, _ = self.packed.chunk(3)
        return (
            nn.functional.linear(x, q),
            torch.addmm(x[:, :1], x, k.t(), beta=0.5, alpha=2.0),
            x @ self.table,
            x.bfloat16() @ self.table.to(torch.bfloat16),
            nn.functional.linear(x, self.packed * self.scale),
            torch.mm(self.packed, x.t()),
            torch.mm(x, x.t()),
            self.wide(x.double()),
        )


def test_weights_behind_views_and_casts() -> None:
    program = export(Operands(), torch.zeros(3, 8))
    protected, coverage = protect(program, Plan())
    names = [layer.layer for layer in coverage.checked]
    # The last two have no constant on the right: their sums are taken in the call.
    assert names == ["packed", "packed#2", "table", "table#2", "packed#3", "mm", "mm_1"]
    assert [layer.reason for layer in coverage.unchecked] == ["no check for float64"]
    x = torch.randn(4, 8)
    *found, verdict = run(protected, x)
    assert Verdict.read(verdict).status == "clean"
    for one, two in zip(found, run(program, x), strict=True):
        torch.testing.assert_close(one, two)


class Mutated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.mul_(0.5)
        return x @ self.weight


def test_a_weight_that_the_program_changes_is_none() -> None:
    program = export(Mutated(), torch.zeros(2, 4), decomposed=True)
    protected, coverage = protect(program, Plan())
    assert [(one.weight, one.key) for one in coverage.checked] == [(None, "")]
    module = protected.module()
    assert torch.equal(module(torch.ones(1, 4))[0], torch.full((1, 4), 0.5))
    assert torch.equal(module(torch.ones(1, 4))[0], torch.full((1, 4), 0.25))


def test_plans_that_do_not_fit_are_refused() -> None:
    program = block()
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("mode 'repair'", lambda: Plan(mode="repair")),
        ("default: scheme 'global'", lambda: Plan(default="global")),
        ("up: no scheme 'exact'", lambda: protect(program, Plan(layers={"up": "exact"}))),
        ("up: no scheme 'exact'", lambda: protect(program, Plan(default="exact"))),
        ("up: scheme 'fused'", lambda: Plan(layers={"up": "fused"})),
        ("'middle'", lambda: protect(program, Plan(layers={"middle": "row"}))),
        ("'conv_transpose1d'", lambda: protect(program, Plan(layers={"conv_transpose1d": "row"}))),
        (r"\(conv_transpose1d\): no check", lambda: protect(program, Plan(strict=True))),
        ("other weights", lambda: protect(program, Plan(weights="0" * 64))),
        ("already", lambda: protect(protect(program, Plan())[0], Plan())),
        ("already", lambda: protect(protect(program, Plan(default="none"))[0], Plan())),
    ]
    for message, case in cases:
        with pytest.raises(PlanRefused, match=message):
            case()


def test_a_plan_for_these_weights_is_taken() -> None:
    program = block()
    coverage = protect(program, Plan(weights=weights_digest(program)))[1]
    assert coverage.weights == weights_digest(program)
    assert weights_digest(block(torch.bfloat16)) != coverage.weights


def test_a_weight_with_nan_is_refused_by_name() -> None:
    module = Shaped(lambda y: y)
    with torch.no_grad():
        module.layer.weight[0, 0] = float("nan")
    program = export(module, torch.zeros(2, 8))
    with pytest.raises(WeightsRefused, match=r"^layer: the weight has NaN"):
        protect(program, Plan())


def test_the_program_given_is_left_alone() -> None:
    program = block()
    before = str(program.graph), dict(program.constants), run(program, batch(2))
    protect(program, Plan())
    assert (str(program.graph), dict(program.constants)) == before[:2]
    assert torch.equal(run(program, batch(2)), before[2])

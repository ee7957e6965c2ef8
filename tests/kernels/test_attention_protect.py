"""Attention in exported programs: protected, reported, or left with a reason."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import scaled_dot_product_attention

from proa_kernels import Plan, PlanRefused, Verdict, protect
from proa_kernels.injection import injecting


def tokens(size: int) -> torch.Tensor:
    return torch.randn(size, 10, 32, generator=torch.Generator().manual_seed(size))


class Encoder(nn.Module):
    """A block of a transformer, its attention by torch's module or by hand."""

    def __init__(self, *, by_hand: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_hand = by_hand
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + (self.attend(x) if self.by_hand else self.module(x)))
        return x + self.down(torch.relu(self.up(x)))

    def module(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0]
        return out

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        packed = nn.functional.linear(x, self.attention.in_proj_weight)
        q, k, v = (one.view(batch, length, 4, 8).transpose(1, 2) for one in packed.chunk(3, -1))
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attention.out_proj(out.transpose(1, 2).reshape(batch, length, width))


def encoder(*, by_hand: bool, decomposed: bool = False) -> ExportedProgram:
    with torch.no_grad():
        program = torch.export.export(
            Encoder(by_hand=by_hand).eval(),
            (torch.zeros(3, 10, 32),),
            dynamic_shapes=({0: Dim("batch", min=2)},),
        )
    return program.run_decompositions() if decomposed else program


def run(program: ExportedProgram, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        return program.module(check_guards=False)(x)


@pytest.mark.parametrize("scheme", ["row", "dup"])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_protected_transformer_block(by_hand: bool, scheme: str) -> None:
    program = encoder(by_hand=by_hand)
    name = "scaled_dot_product_attention"
    protected, coverage = protect(program, Plan(mode="correct", layers={name: scheme}))
    assert coverage.unchecked == ()
    assert [one.layer for one in coverage.checked if one.covers == "attention"] == [name]
    assert coverage.shares == {"attention": 1.0, "gemm": 1.0}
    buffer = io.BytesIO()
    torch.export.save(protected, buffer)
    loaded = torch.export.load(io.BytesIO(buffer.getvalue()))
    for size in (2, 7):
        x = tokens(size)
        expected = run(program, x)
        out, found = run(protected, x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        assert Verdict.read(found).status == "clean"
        assert torch.equal(run(loaded, x)[0], out)
        at = next(i for i, one in enumerate(coverage.checked) if one.covers == "attention")
        hit: list[int] = []

        def once(acc: torch.Tensor, attempt: int, hit: list[int] = hit) -> None:
            """The one product here with 8 columns is that of p and the values."""
            if attempt == 0 and acc.shape[-1] == 8 and not hit:
                acc[(1,) * acc.dim()] += 3.0
                hit.append(1)

        with injecting(once):
            again, found = run(protected, x)
        verdict = Verdict.read(found)
        assert (verdict.status, verdict.layer, verdict.alarms) == ("corrected", at, 1)
        assert verdict.column == 1
        assert torch.equal(again, out)


def test_decomposed_attention_is_products_and_no_class_of_its_own() -> None:
    """Then its softmax is not checked."""
    protected, coverage = protect(encoder(by_hand=False, decomposed=True), Plan())
    assert coverage.unchecked == ()
    assert set(coverage.shares) == {"gemm"}
    assert sum(layer.op == "bmm" for layer in coverage.checked) >= 2
    assert Verdict.read(run(protected, tokens(5))[1]).status == "clean"


class Odd(nn.Module):
    """Attention that cannot be checked."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            scaled_dot_product_attention(x, x, x, dropout_p=0.1),
            scaled_dot_product_attention(*(one.double() for one in (x, x, x))),
        )


def test_what_is_left_unprotected_has_a_reason() -> None:
    program = torch.export.export(Odd(), (torch.zeros(2, 3, 5, 8),))
    _, coverage = protect(program, Plan())
    reasons = [(layer.covers, layer.reason) for layer in coverage.unchecked]
    assert reasons == [
        ("attention", "dropout is random: no second computation can confirm it"),
        ("attention", "no check for float64"),
    ]
    with pytest.raises(PlanRefused, match="dropout"):
        protect(program, Plan(strict=True))

"""A protected program, run with a fault in one of its checked products."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import unfold
from torch.utils import _pytree as pytree

from proa.errors import InvalidRequest, ProgramRefused
from proa.integrity.campaign.inputs import Batch
from proa.integrity.campaign.operators import CONV, LINEAR, Result
from proa_kernels import Plan, PlanRefused, Verdict, WeightsRefused, protect
from proa_kernels.conv.geometry import Geometry
from proa_kernels.injection import injecting

Named = dict[str, Any]  # arguments of an operator by their names
Act = Callable[["Checked"], Result]


@dataclass(frozen=True)
class Checked:
    """One call of a checked operator in a running program."""

    target: Any
    args: Named

    def __call__(self, **changed: Any) -> Result:
        """Run it, with some arguments changed."""
        found: Result = self.target(**{**self.args, **changed})
        return found

    @property
    def columns(self) -> int:
        """The dimension of what its products give that has the outputs."""
        return CONV.columns if "conv2d" in str(self.target) else LINEAR.columns

    @cached_property
    def product(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """x `[M, K]` and weight `[N, K]` of a plain matrix product, or of a convolution of one
        group as such; else None."""
        ops = torch.ops.proa
        if self.target in (ops.checked_conv2d.default, ops.dup_conv2d.default):
            return _patches(self.args) if self.args["groups"] == 1 else None
        if self.target not in (ops.checked_linear.default, ops.dup_linear.default):
            return None
        x, weight = self.args["x"], self.args["weight"]
        weight_NK = weight.T if self.args.get("inner_first") else weight
        return x.reshape(-1, x.shape[-1]), weight_NK


def _patches(args: Named) -> tuple[torch.Tensor, torch.Tensor]:
    """What each place of a convolution multiplies, `[M, K]`, and its kernel `[N, K]`."""
    x, weight = args["x"], args["weight"]
    if x.dim() == 3:
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    walk = Geometry.of(args["stride"], args["padding"], args["dilation"], 1)
    padded, padding = walk.padded(x.float())
    patches = unfold(padded, weight.shape[2:], walk.dilation, padding, walk.stride)
    return patches.transpose(1, 2).flatten(0, 1).to(x.dtype), weight.flatten(1)


@dataclass(frozen=True)
class Answers:
    """Outputs of one batch, without and with its verdict on each layer."""

    outputs: tuple[torch.Tensor, ...]
    verdict: Verdict
    layers: tuple[Verdict, ...]


class Protected:
    """A program in mode detect: its answers are those that a fault leaves."""

    def __init__(self, program: ExportedProgram) -> None:
        """Raises ProgramRefused (weights no checksum can be taken of), InvalidRequest (protected
        already; nothing in it can be checked)."""
        try:
            protected, self.coverage = protect(program, Plan(mode="detect"))
        except PlanRefused as exc:
            raise InvalidRequest(f"the campaign protects the program itself: {exc}") from exc
        except WeightsRefused as exc:
            raise ProgramRefused(str(exc)) from exc
        if not self.coverage.checked:
            raise InvalidRequest("the program has no matrix product that can be checked")
        module = protected.module(check_guards=False)
        assert isinstance(module, GraphModule)
        self._module = module
        self._calls = _calls(module)
        assert len(self._calls) == len(self.coverage.checked)

    @torch.inference_mode()
    def run(self, batch: Batch, at: int = -1, act: Act | None = None) -> Answers:
        """Answers to a batch; `act` in the place of layer `at`'s checked call."""
        seen = {} if act is None else {self._calls[at]: act}
        return _answers(_Run(self._module, seen).run(*batch))

    @torch.inference_mode()
    def products(self, batch: Batch) -> list[int]:
        """How many products each layer's call hands to the injection hook; 0: it has none."""
        counts = [0] * len(self._calls)

        def counting(at: int) -> Act:
            def act(call: Checked) -> Result:
                def tamper(_acc: torch.Tensor, attempt: int) -> None:
                    counts[at] += attempt == 0

                with injecting(tamper):
                    return call()

            return act

        acts = {node: counting(at) for at, node in enumerate(self._calls)}
        _Run(self._module, acts).run(*batch)
        return counts


def _answers(tree: Any) -> Answers:
    *outputs, verdict = pytree.tree_leaves(tree)
    return Answers(tuple(outputs), Verdict.read(verdict), Verdict.read_layers(verdict))


def _calls(module: GraphModule) -> list[Node]:
    """The checked calls in the order of the coverage report, which is that of the verdict."""
    merge = torch.ops.proa.merge_verdicts.default
    merged = next(node for node in module.graph.nodes if node.target is merge)
    verdicts: Sequence[Node] = merged.args[0]
    assert all(node.target is operator.getitem for node in verdicts)
    return [node.args[0] for node in verdicts]  # type: ignore[misc]


class _Run(Interpreter):
    def __init__(self, module: GraphModule, acts: Mapping[Node, Act]) -> None:
        super().__init__(module)
        self._acts = acts

    def run_node(self, n: Node) -> Any:
        act = self._acts.get(n)
        if act is None:
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        target: Any = n.target
        names = (argument.name for argument in target._schema.arguments)  # noqa: SLF001  # no other way to the names
        return act(Checked(target, {**dict(zip(names, args, strict=False)), **kwargs}))

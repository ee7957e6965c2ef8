"""The graph pass. Works on `torch.export` programs, before or after decomposition."""

from __future__ import annotations

import copy
import hashlib
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from proa_kernels import checksum
from proa_kernels.errors import PlanRefused, WeightsRefused
from proa_kernels.protection.coverage import Coverage, Layer
from proa_kernels.protection.flops import class_of, count, inner_products, is_product, name_of
from proa_kernels.protection.plan import Plan
from proa_kernels.protection.sites import Constants, Site, Stored, find_site

PREFIX = "proa_check_"
VERDICT = "proa_verdict"


def protect(
    program: ExportedProgram, plan: Plan, *, batch: int = 1
) -> tuple[ExportedProgram, Coverage]:
    """`program` with its matrix products checked after `plan`, and what that covers.

    The new program shares the weights; its `state_dict` has the same keys: checksums are constants
    named `proa_check_*`. Its last output is the verdict (see `proa_kernels.verdict`); it follows
    the outputs of a tuple or list, and pairs with any other output. Dynamic sizes stay dynamic.
    `batch`: stands for every dynamic size when FLOPs are counted.
    Raises PlanRefused or WeightsRefused, naming the layer.
    """
    _check_program(program, plan)
    module = _copied(program)
    products = _products(program, module, plan, batch)
    plan.check_layers(layer.layer for layer, site in products if site)
    taken: dict[str, Stored] = {}
    checked = []
    for at, (layer, site) in enumerate(products):
        if site and layer.scheme != "none":
            one = _stored(layer, site)
            taken[one.key] = one
            products[at] = (replace(layer, key=one.key), site)
            checked.append((site, layer.scheme, one.key))
    coverage = Coverage(
        plan.mode, batch, weights_digest(program), tuple(layer for layer, _ in products)
    )
    missed = [layer for layer in coverage.unchecked if layer.reason]
    if plan.strict and missed:
        raise PlanRefused(f"strict: {missed[0].layer} ({missed[0].op}): {missed[0].reason}")
    return _Rewrite(program, module, taken).run(checked, plan.mode == "correct"), coverage


def _copied(program: ExportedProgram) -> GraphModule:
    """The program's graph, to be edited. Specs name nodes, and a plain copy renames those that are
    called as something of Python's: `input`, which every `nn.Sequential` has."""
    module: GraphModule = copy.deepcopy(program.graph_module)
    for node, old in zip(module.graph.nodes, program.graph.nodes, strict=True):
        node.name = old.name
    return module


def weights_digest(program: ExportedProgram) -> str:
    """sha256, hex, over names and values of a program's weights and constants."""
    digest = hashlib.sha256()
    stored = {**program.constants, **program.state_dict}
    for name in sorted(stored):
        value = stored[name]
        if isinstance(value, torch.Tensor) and not name.startswith(PREFIX):
            digest.update(f"{name} {checksum.key_of(value)}\n".encode())
    return digest.hexdigest()


def _check_program(program: ExportedProgram, plan: Plan) -> None:
    if any(node.target is torch.ops.proa.merge_verdicts.default for node in program.graph.nodes):
        raise PlanRefused("the program is protected already")
    if plan.weights is not None and plan.weights != weights_digest(program):
        raise PlanRefused("the plan was made for other weights")


def _products(
    program: ExportedProgram, module: GraphModule, plan: Plan, batch: int
) -> list[tuple[Layer, Site | None]]:
    """Every matrix product of the program, in order, with its site where it can be checked."""
    constants = Constants(program, module.graph)
    uses: Counter[str] = Counter()
    found: list[tuple[Layer, Site | None]] = []
    for node in filter(is_product, module.graph.nodes):
        site = find_site(node, constants)
        if isinstance(site, str):
            found.append((_unchecked(node, site, batch), None))
            continue
        name = site.source.removesuffix(".weight")
        uses[name] += 1
        name += f"#{uses[name]}" if uses[name] > 1 else ""
        scheme = plan.scheme(name, site.schemes)
        layer = Layer(
            layer=name,
            op=name_of(node),
            dtype=_dtype(site.dtype),
            weight=site.weight,
            flops=count(node, batch),
            scheme=scheme,
            reason="" if scheme != "none" else "the plan says none",
            covers=site.covers,
        )
        found.append((layer, site))
    reason = "inside a nested graph"
    inner_nodes = filter(is_product, inner_products(module))
    return found + [(_unchecked(node, reason, batch), None) for node in inner_nodes]


def _unchecked(node: Node, reason: str, batch: int) -> Layer:
    value = node.meta.get("val")
    dtype = _dtype(value.dtype) if isinstance(value, torch.Tensor) else ""
    return Layer(
        layer=node.name,
        op=name_of(node),
        dtype=dtype,
        weight=None,
        flops=count(node, batch),
        scheme="none",
        reason=reason,
        covers=class_of(node),
    )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _stored(layer: Layer, site: Site) -> Stored:
    try:
        return site.stored(layer.scheme)
    except WeightsRefused as exc:
        raise WeightsRefused(f"{layer.layer}: {exc}") from exc


class _Rewrite:
    """Edits one graph, then wraps it up as a program again."""

    def __init__(
        self, program: ExportedProgram, module: GraphModule, stored: dict[str, Stored]
    ) -> None:
        self._program = program
        self._module = module
        self._graph = module.graph
        self._inputs = list(program.graph_signature.input_specs)
        self._constants: dict[str, torch.Tensor] = {}
        self._places: dict[str, dict[str, Node]] = {}
        self._renewed: dict[Node, Node] = {}
        for key, one in stored.items():
            self._places[key] = {
                suffix: self._constant(f"{PREFIX}{key}_{suffix}", value)
                for suffix, value in one.tensors.items()
            }

    def run(self, checked: Sequence[tuple[Site, str, str]], correct: bool) -> ExportedProgram:
        """`checked`: sites in the order of the program, each with its scheme and its key."""
        verdicts = [self._replace(*one, correct) for one in checked]
        output = self._graph.output_node()
        with self._graph.inserting_before(output):
            merged = self._call(torch.ops.proa.merge_verdicts.default, (verdicts,), {})
        merged.name = VERDICT
        stacks = (
            n.meta["nn_module_stack"] for n in self._graph.nodes if n.meta.get("nn_module_stack")
        )
        # The verdict belongs to the outermost module: `torch.export.unflatten` asks.
        merged.meta["nn_module_stack"] = dict(list(next(stacks, {}).items())[:1])
        output.args = ((*output.args[0], merged),)  # type: ignore[misc]
        self._graph.lint()
        self._module.recompile()
        return self._wrapped(merged)

    def _constant(self, name: str, value: torch.Tensor) -> Node:
        """A new input of the graph, filled from the program's constants: before the user's own."""
        specs = self._inputs
        at = next((i for i, s in enumerate(specs) if s.kind == InputKind.USER_INPUT), len(specs))
        with self._graph.inserting_before(list(self._graph.nodes)[at]):  # inputs come first
            node = self._graph.placeholder(f"c_{name}")
        node.meta["val"] = self._fake(value)
        spec = InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(node.name), name)
        specs.insert(at, spec)
        self._constants[name] = value
        return node

    def _replace(self, site: Site, scheme: str, key: str, correct: bool) -> Node:
        """The checked operator in the place of a product. Returns the verdict's node."""
        node = site.node
        op, args, options = site.call(scheme, correct, self._places[key])
        args, options = pytree.tree_map(self._current, (args, options))
        with self._graph.inserting_before(node):
            call = self._call(op, args, options, node)
            out, verdict = (self._item(call, i) for i in range(2))
        node.replace_all_uses_with(out)
        self._graph.erase_node(node)
        self._renewed[node] = out
        return verdict

    def _current(self, arg: Any) -> Any:
        """A product that was replaced may be the input of a later one."""
        return self._renewed.get(arg, arg) if isinstance(arg, Node) else arg

    def _call(self, op: Any, args: tuple[Any, ...], options: Any, old: Node | None = None) -> Node:
        node = self._graph.call_function(op, args, options)
        kept = ("nn_module_stack", "stack_trace", "torch_fn")
        node.meta.update({k: old.meta[k] for k in kept if old is not None and k in old.meta})
        fake_args, fake_options = pytree.tree_map(_value, (args, options))
        with self._mode():
            node.meta["val"] = op(*fake_args, **fake_options)
        return node

    def _item(self, call: Node, index: int) -> Node:
        node = self._graph.call_function(operator.getitem, (call, index))
        node.meta.update({k: v for k, v in call.meta.items() if k != "val"})
        node.meta["val"] = call.meta["val"][index]
        return node

    def _mode(self) -> Any:
        for node in self._graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, FakeTensor):
                return value.fake_mode
        return FakeTensorMode()

    def _fake(self, value: torch.Tensor) -> torch.Tensor:
        fake: torch.Tensor = self._mode().from_tensor(value, static_shapes=True)
        return fake

    def _wrapped(self, merged: Node) -> ExportedProgram:
        old = self._program
        outputs = [
            *old.graph_signature.output_specs,
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(merged.name), None),
        ]
        renamed = self._outputs_by_node(outputs)
        return ExportedProgram(
            root=self._module,
            graph=self._graph,
            graph_signature=ExportGraphSignature(self._inputs, renamed),
            state_dict=old.state_dict,
            range_constraints=copy.deepcopy(old.range_constraints),
            module_call_graph=_with_verdict(old.module_call_graph),
            example_inputs=old.example_inputs,
            constants={**old.constants, **self._constants},
            verifiers=old.verifiers,
        )

    def _outputs_by_node(self, specs: list[OutputSpec]) -> list[OutputSpec]:
        """Output specs name nodes: a product that was an output has a new one."""
        nodes = self._graph.output_node().args[0]
        assert isinstance(nodes, tuple | list)
        renamed = []
        for spec, node in zip(specs, nodes, strict=True):
            named = isinstance(spec.arg, TensorArgument) and isinstance(node, Node)
            renamed.append(replace(spec, arg=TensorArgument(node.name)) if named else spec)
        return renamed


def _value(arg: Any) -> Any:
    return arg.meta["val"] if isinstance(arg, Node) else arg


def _with_verdict(entries: list[ModuleCallEntry]) -> list[ModuleCallEntry]:
    """The module call graph, with the verdict after the outputs of the program itself."""
    first, *others = entries
    assert first.fqn == ""
    assert first.signature is not None
    leaves = first.signature.out_spec.num_leaves
    outputs = pytree.tree_unflatten(list(range(leaves)), first.signature.out_spec)
    extends = type(outputs) in (tuple, list)
    new = type(outputs)((*outputs, leaves)) if extends else (outputs, leaves)
    signature = replace(first.signature, out_spec=pytree.tree_structure(new))
    return [replace(first, signature=signature), *others]

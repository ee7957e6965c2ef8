"""Where an exported program multiplies by a constant weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.operator_schemas import normalize_function
from torch.utils._pytree import tree_map

from proa_kernels.linear import DTYPES
from proa_kernels.protection.flops import name_of

# Operators between a stored weight and its product. What they make of a constant is a constant.
_CONSTANT = frozenset(
    (
        *("t", "permute", "transpose", "numpy_T", "view", "reshape", "_unsafe_view", "flatten"),
        *("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "float"),
        *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "squeeze"),
        *("unsqueeze", "expand", "narrow"),
    )
)


@dataclass(frozen=True)
class Site:
    """A product that can be checked: `alpha x weight (+ beta addend)`. `value`: the weight as
    `[N, K]`; the node has it as `[K, N]` where `inner_first`. `source`: its name in the program."""

    node: Node
    x: Node
    weight: Node
    addend: Node | None
    inner_first: bool
    alpha: float
    beta: float
    value: torch.Tensor
    source: str


class Constants:
    """Values of nodes that depend on nothing but the program's weights and constants."""

    def __init__(self, program: ExportedProgram, graph: torch.fx.Graph) -> None:
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        changing = set(signature.buffers_to_mutate.values())
        stored = {**program.constants, **program.state_dict}
        self._values: dict[Node, tuple[Any, str] | None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                source = names.get(node.name, "")
                fixed = source in stored and source not in changing
                self._values[node] = (stored[source], source) if fixed else None
            elif node.op == "call_function":
                self._values[node] = self._evaluate(node)

    def find(self, node: Any) -> tuple[torch.Tensor, str] | None:
        """The value and the name of the stored tensor behind it, or None."""
        found = self._values.get(node) if isinstance(node, Node) else None
        return found if found and isinstance(found[0], torch.Tensor) else None

    def _evaluate(self, node: Node) -> tuple[Any, str] | None:
        getitem = getattr(node.target, "__name__", "") == "getitem"
        inputs = node.all_input_nodes
        if not inputs or not (getitem or name_of(node) in _CONSTANT):
            return None
        known = [self._values.get(one) for one in inputs]
        if any(one is None for one in known):
            return None
        args, kwargs = tree_map(self._value, (node.args, node.kwargs))
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs), self._values[inputs[0]][1]  # type: ignore[index]

    def _value(self, arg: Any) -> Any:
        return self._values[arg][0] if isinstance(arg, Node) else arg  # type: ignore[index]


def find_site(node: Node, constants: Constants) -> Site | str:
    """The site at a product's node, or why there is none."""
    reader = _READERS.get(name_of(node))
    if reader is None:
        return "no check for this operator in this version"
    x, weight, addend, inner_first, alpha, beta = reader(node)
    found = constants.find(weight)
    if found is None:
        left = constants.find(x) is not None
        return "the weight is the left operand" if left else "no operand is a constant weight"
    value, source = found
    sizes = [one.meta["val"] for one in (x, weight)]
    if value.dim() != 2 or sizes[0].dim() == 0:
        return "the weight is not a matrix"
    if value.dtype not in DTYPES or sizes[0].dtype != value.dtype:
        return f"no check for {str(value.dtype).removeprefix('torch.')}"
    if not value.numel():
        return "the weight is empty"
    if value.layout != torch.strided or value.is_quantized:
        return "the weight is sparse or quantised"
    value = value.T if inner_first else value
    return Site(node, x, weight, addend, inner_first, alpha, beta, value.detach(), source)


_Operands = tuple[Node, Node, Node | None, bool, float, float]


def _operands(node: Node) -> dict[str, Any]:
    """Arguments by their names in the schema (`self` is `input`), defaults included."""
    assert callable(node.target)
    found = normalize_function(
        node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True
    )
    assert found is not None
    return found.kwargs


def _linear(node: Node) -> _Operands:
    at = _operands(node)
    return at["input"], at["weight"], at["bias"], False, 1.0, 1.0


def _mm(node: Node) -> _Operands:
    at = _operands(node)
    return at["input"], at["mat2"], None, True, 1.0, 0.0


def _matmul(node: Node) -> _Operands:
    at = _operands(node)
    return at["input"], at["other"], None, True, 1.0, 0.0


def _addmm(node: Node) -> _Operands:
    at = _operands(node)
    return at["mat1"], at["mat2"], at["input"], True, float(at["alpha"]), float(at["beta"])


_READERS: dict[str, Callable[[Node], _Operands]] = {
    "linear": _linear,
    "mm": _mm,
    "matmul": _matmul,
    "addmm": _addmm,
}


def inner_products(module: torch.fx.GraphModule) -> Iterator[Node]:
    """Nodes of graphs within the graph (`cond`, autocast regions)."""
    for name, child in module.named_modules():
        if name and isinstance(child, torch.fx.GraphModule):
            yield from child.graph.nodes

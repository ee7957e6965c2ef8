"""Values in a program that depend on nothing but its weights and constants."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_map

from proa_kernels.protection.flops import name_of

# Operators between a stored weight and its product. What they make of a constant is a constant.
_CONSTANT = frozenset(
    (
        *("t", "permute", "transpose", "numpy_T", "view", "reshape", "_unsafe_view", "flatten"),
        *("contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "float"),
        *("slice", "select", "split", "split_with_sizes", "chunk", "unbind", "squeeze"),
        *("unsqueeze", "expand", "narrow"),
        # What turns stored integers into weights; the checksum is of the result.
        *("mul", "div", "add", "sub", "neg", "dequantize_per_tensor", "dequantize_per_channel"),
    )
)


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

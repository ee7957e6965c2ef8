"""FLOPs of one node, counted by torch on shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

# Operators that multiply matrices, by name without overload. Those not in `sites` are reported.
PRODUCTS = frozenset(
    (
        *("linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "addbmm", "einsum", "tensordot"),
        *("mv", "addmv", "dot", "vdot", "inner", "bilinear", "_scaled_mm", "chain_matmul"),
        *("conv1d", "conv2d", "conv3d", "convolution", "_convolution"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention"),
        *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
        *("_int_mm", "_weight_int8pack_mm", "_weight_int4pack_mm"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"),
    )
)


def is_product(node: torch.fx.Node) -> bool:
    """Whether the node multiplies matrices."""
    return node.op == "call_function" and name_of(node) in PRODUCTS


def class_of(node: torch.fx.Node) -> str:
    """The report's class of a product that has no site."""
    name = name_of(node)
    return "attention" if "attention" in name else "integer" if "int" in name else "gemm"


def inner_products(module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Nodes of graphs within the graph (`cond`, autocast regions)."""
    for name, child in module.named_modules():
        if name and isinstance(child, torch.fx.GraphModule):
            yield from child.graph.nodes


def name_of(node: torch.fx.Node) -> str:
    """The operator's name without namespace and overload."""
    return str(node.target).split(".")[1] if isinstance(node.target, OpOverload) else ""


def count(node: torch.fx.Node, batch: int) -> int | None:
    """FLOPs with every symbolic size set to `batch`; None where torch cannot run the shapes."""

    def concrete(arg: Any) -> Any:
        value = arg.meta.get("val") if isinstance(arg, torch.fx.Node) else arg
        if isinstance(value, torch.Tensor):
            shape = [size_of(size, batch) for size in value.shape]
            return torch.empty(shape, dtype=value.dtype, device="meta")
        return size_of(value, batch) if isinstance(value, torch.SymInt) else value

    # It imports triton where that is installed, which nobody else here needs.
    from torch.utils.flop_counter import FlopCounterMode

    assert isinstance(node.target, OpOverload)
    counter = FlopCounterMode(display=False, custom_mapping=_COUNTED)
    try:
        args = tree_map(concrete, (node.args, node.kwargs))
        with counter, torch.no_grad():
            node.target(*args[0], **args[1])
    except Exception:  # noqa: BLE001  # a report must not depend on what meta kernels can do
        return None
    return int(counter.get_total_flops())


def _int_mm(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """torch's counter does not know this one."""
    return 2 * x[0] * x[1] * weight[1]


# By packet; `torch.ops.aten` has no public name for it.
_COUNTED = {torch.ops.aten._int_mm: _int_mm}  # noqa: SLF001


def size_of(size: int | torch.SymInt, batch: int) -> int:
    """A size with every symbol set to `batch`."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))

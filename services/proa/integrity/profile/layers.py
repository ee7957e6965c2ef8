"""The matrix products of a program: what each has to do, and how to call it under each scheme.

All goes through `proa_kernels.protection`: an operator that can be checked there is profiled here.
Letters: M rows of the flattened output, N outputs (columns or channels).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node, map_arg

from proa.errors import InvalidRequest, NotSupported
from proa.integrity.profile.plan import ModelKey
from proa.integrity.profile.roofline import BATCH_MAX, Work
from proa_kernels import Coverage, Layer, Plan, WeightsRefused, protect
from proa_kernels.protection.flops import count, is_product, size_of
from proa_kernels.protection.sites import Constants, Site, find_site

Call = Callable[[], object]
_ADDEND_FIRST = frozenset(("addmm", "baddbmm", "addbmm", "addmv"))
_CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"))


@dataclass(frozen=True)
class Product:
    """One matrix product. `layer`: its row of the coverage report; `site`: None where it cannot be
    checked, for `layer.reason`."""

    layer: Layer
    node: Node
    site: Site | None

    @property
    def schemes(self) -> tuple[str, ...]:
        return () if self.site is None else self.site.schemes

    def work(self, batch: int) -> Work:
        """FLOPs and bytes with every dynamic size set to `batch`."""
        return Work(count(self.node, batch), _moved(self.node, batch), self._im2col(batch))

    def outputs(self, batch: int) -> tuple[int, int] | None:
        """M and N, where a weight says what N is."""
        if not self.layer.weight or not (columns := self.layer.weight[0]):
            return None
        return math.prod(_shape(self.node, batch)) // columns, columns

    def like(self, batch: int) -> str:
        """Two products of this text do the same work on other numbers."""
        args = map_arg((self.node.args, self.node.kwargs), lambda one: _described(one, batch))
        return f"{self.layer.op} {args} {self.schemes}"

    def shape(self, batch: int) -> str:
        """For people: `8x16 . 160x16`."""
        first = 1 if self.layer.op in _ADDEND_FIRST else 0
        sizes = [_shape(one, batch) for one in self.node.all_input_nodes[first : first + 2]]
        return " . ".join("x".join(str(n) for n in one) for one in sizes)

    def _im2col(self, batch: int) -> int | None:
        """Bytes of a convolution as a product of matrices: each input as often as it is used."""
        if self.layer.op not in _CONVOLUTIONS:
            return None
        weight = self.node.all_input_nodes[1]
        columns, *per_group = _shape(weight, batch)
        out = _shape(self.node, batch)
        channels = _shape(self.node.all_input_nodes[0], batch)[1]
        taps = math.prod(per_group[1:])
        elements = math.prod(out) // columns * channels * taps + math.prod(out)
        return elements * int(weight.meta["val"].element_size()) + _size(weight, batch)


def products_of(program: ExportedProgram) -> list[Product]:
    """Every product, as the coverage report has them; those in nested graphs are left out."""
    constants = Constants(program, program.graph)
    nodes = [node for node in program.graph.nodes if is_product(node)]
    found = []
    for node, layer in zip(nodes, coverage_of(program).layers, strict=False):
        site = find_site(node, constants)
        found.append(Product(layer, node, None if isinstance(site, str) else site))
    return found


def coverage_of(program: ExportedProgram) -> Coverage:
    """The coverage report with nothing checked: names and reasons."""
    return protect(program, Plan(default="none"))[1]


def model_key(program: ExportedProgram, sha256: str) -> ModelKey:
    """What a plan knows a model by. `sha256`: of its file."""
    coverage = coverage_of(program)
    digest = hashlib.sha256()
    for one in coverage.layers:
        digest.update(f"{one.layer} {one.op} {one.dtype} {one.weight}\n".encode())
    return ModelKey(digest.hexdigest(), coverage.weights, sha256)


def batch_range(program: ExportedProgram) -> tuple[int, int]:
    """The smallest and largest batch axis that the program was exported for."""
    sizes = [node.meta["val"].shape[0] for node in _inputs(program) if node.meta["val"].dim()]
    dynamic = [size for size in sizes if not isinstance(size, int)]
    if not dynamic:
        fixed = int(sizes[0]) if sizes else 1
        return fixed, fixed
    expression = dynamic[0].node.expr
    known = program.range_constraints.get(expression)
    low, high = (known.lower, known.upper) if known is not None else (1, BATCH_MAX)
    # Torch writes 2 where nothing was said, and takes 1 all the same.
    return 1 if low <= 2 else int(low), int(min(high, BATCH_MAX))


def example_inputs(program: ExportedProgram, batch: int, device: str, seed: int = 0) -> list[Any]:
    """Normal numbers for floating-point inputs, zeros for others, in the program's order.

    Raises InvalidRequest where the program was not exported for this batch.
    """
    low, high = batch_range(program)
    if not low <= batch <= high:
        raise InvalidRequest(f"batches: {batch}: this program takes batches of {low} to {high}")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for node in _inputs(program):
        shape, dtype = _shape(node, batch), node.meta["val"].dtype
        floats = dtype.is_floating_point
        one = torch.randn(shape, generator=generator) if floats else torch.zeros(shape)
        found.append(one.to(device, dtype))
    return found


def _inputs(program: ExportedProgram) -> list[Node]:
    """The user's inputs. Raises NotSupported for those that are no tensors."""
    names = set(program.graph_signature.user_inputs)
    found = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    for node in found:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise NotSupported(f"input {node.name!r} of the program is no tensor")
    return found


def calls_of(
    program: ExportedProgram,
    products: Sequence[Product],
    inputs: Sequence[Any],
    schemes: Sequence[str],
) -> list[dict[str, Call]]:
    """For each product the operator itself under `none`, and the checked one under each scheme
    that it has, on the values that one run of the program gives them."""
    plans = [_plan_calls(one, schemes) for one in products]
    wanted: set[Node] = set()
    for plan in plans:
        for _, args, options in plan.values():
            map_arg((args, options), wanted.add)
    values = _Recorder(program, wanted).run_on(inputs)
    return [{name: _bound(entry, values) for name, entry in plan.items()} for plan in plans]


_Entry = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _plan_calls(product: Product, schemes: Sequence[str]) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {
        "none": (product.node.target, product.node.args, dict(product.node.kwargs))
    }
    for scheme in schemes:
        if product.site is not None and scheme in product.schemes:
            stored = _stored(product.layer.layer, product.site, scheme)
            found[scheme] = product.site.call(scheme, True, stored)
    return found


def _stored(layer: str, site: Site, scheme: str) -> Any:
    """What the scheme keeps, as values in the place of nodes."""
    try:
        return site.stored(scheme).tensors
    except WeightsRefused as exc:
        raise WeightsRefused(f"{layer}: {exc}") from exc


def _bound(entry: _Entry, values: Mapping[Node, Any]) -> Call:
    op, args, options = entry
    found: Any = map_arg((args, options), values.__getitem__)
    return partial(op, *found[0], **found[1])


class _Recorder(Interpreter):
    """Runs a program and keeps the values of some nodes."""

    def __init__(self, program: ExportedProgram, wanted: set[Node]) -> None:
        super().__init__(program.graph_module)
        self._program = program
        self._wanted = wanted
        self._values: dict[Node, Any] = {}

    def run_on(self, inputs: Sequence[Any]) -> Mapping[Node, Any]:
        self.run(*self._arguments(iter(inputs)))
        return self._values

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self._values[n] = value
        return value

    def _arguments(self, inputs: Any) -> list[Any]:
        """The program's weights and constants, and the user's own, in the graph's order."""
        stored = {**self._program.constants, **self._program.state_dict}
        found = []
        for spec in self._program.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT:
                found.append(next(inputs))
            elif spec.target in stored:
                found.append(stored[spec.target])
            else:
                raise NotSupported(f"the program's input {spec.arg} is of no kind known here")
        return found


def _shape(node: Node, batch: int) -> list[int]:
    value = node.meta["val"]
    return [size_of(size, batch) for size in value.shape]


def _size(node: Node, batch: int) -> int:
    """Bytes of a node's value; 0 for what is no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(_shape(node, batch)) * int(value.element_size())


def _moved(node: Node, batch: int) -> int:
    """Bytes of operands and result, each once."""
    return sum(_size(one, batch) for one in (*node.all_input_nodes, node))


def _described(node: Node, batch: int) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{value.dtype}{_shape(node, batch)}"

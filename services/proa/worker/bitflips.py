"""Injected bit flips, by their site: outputs, weights in memory, accumulators of checked products.

Only what faults.FaultRecord says is acted out: a worker started without faults has no record.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from proa.errors import EnvironmentLacks
from proa.worker.faults import Fault, FaultKind, FaultSite, flip_bits
from proa.worker.programs import Program

Outputs = tuple[torch.Tensor, ...]


class BitFlips:
    """Flips bits for the faults that hit a request, and takes weights back when a fault ends."""

    def __init__(self, active: Callable[[], Sequence[Fault]]) -> None:
        self._active = active
        self._flipped: dict[tuple[str, float], tuple[Fault, Program]] = {}
        self._dice: dict[tuple[str, float], random.Random] = {}

    def during(
        self, hits: Sequence[Fault], program: Program, layers: int
    ) -> AbstractContextManager[None]:
        """Around one computation of `program`, which has `layers` checked products."""
        if self._flipped or self._dice:
            self._end()
        for fault in _at(FaultSite.WEIGHT, hits):
            self._flip_weights(fault, program)
        accumulators = _at(FaultSite.ACTIVATION, hits)
        return self._flipping(accumulators, layers) if accumulators and layers else nullcontext()

    def of_outputs(self, hits: Sequence[Fault], outputs: Outputs) -> Outputs:
        """Outputs on the host, flipped in a copy: they may be weights themselves."""
        for fault in _at(FaultSite.OUTPUT, hits):
            outputs = tuple(output.clone() for output in outputs)
            flip_bits([_bytes_of(output) for output in outputs], fault.bits, fault.seed)
        return outputs

    def _end(self) -> None:
        """Flipping the same bits again undoes it."""
        standing = {_key(fault) for fault in self._active()}
        for key in [key for key in self._flipped if key not in standing]:
            fault, program = self._flipped.pop(key)
            _flip(program.parameters(), fault.bits, fault.seed)
        for key in self._dice.keys() - standing:
            del self._dice[key]

    def _flip_weights(self, fault: Fault, program: Program) -> None:
        if _key(fault) not in self._flipped:
            self._flipped[_key(fault)] = (fault, program)
            _flip(program.parameters(), fault.bits, fault.seed)

    @contextmanager
    def _flipping(self, hits: Sequence[Fault], layers: int) -> Iterator[None]:
        """Other bits at each hit, in one layer's first product: the recomputation is right.

        Raises EnvironmentLacks where nothing was hit since no product ran on a CPU: the kernels of
        a GPU have no hook, and a fault that does nothing would pass for one that was survived.
        """
        # From this import on the process has other CPU kernels, with a hook.
        from proa_kernels.injection import injecting

        plans = [self._plan(fault, layers) for fault in hits]
        last = -1

        def tamper(accumulators: torch.Tensor, attempt: int) -> None:
            nonlocal last
            # A layer is one call, whose first product is hit: attention makes several.
            if attempt or injector.call == last:
                return
            last = injector.call
            for layer, bits, seed in plans:
                if layer == last:
                    _flip([accumulators], bits, seed)

        with injecting(tamper) as injector:
            yield
            if injector.call < 0:
                names = ", ".join(fault.id for fault in hits)
                raise EnvironmentLacks(
                    f"fault {names}: site ACTIVATION is for workers on a CPU; none of this"
                    " program's checked products ran on one"
                )

    def _plan(self, fault: Fault, layers: int) -> tuple[int, int, int]:
        dice = self._dice.setdefault(_key(fault), random.Random(fault.seed))  # noqa: S311
        return dice.randrange(layers), fault.bits, dice.getrandbits(64)


def _at(site: FaultSite, hits: Sequence[Fault]) -> list[Fault]:
    return [fault for fault in hits if fault.kind == FaultKind.BITFLIP and fault.site == site]


def _key(fault: Fault) -> tuple[str, float]:
    return fault.id, fault.expires_s


@torch.no_grad()
def _flip(tensors: Sequence[torch.Tensor], bits: int, seed: int) -> None:
    """Flip bits of tensors in place, wherever they are."""
    hosted = [tensor.detach().cpu().contiguous() for tensor in tensors]
    flip_bits([_bytes_of(host) for host in hosted], bits, seed)
    for tensor, host in zip(tensors, hosted, strict=True):
        if tensor.data_ptr() != host.data_ptr():
            tensor.copy_(host)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data

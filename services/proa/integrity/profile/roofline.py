"""The roofline of one layer: what bounds it, how near it comes, and at which batch that changes.

Intensity is FLOPs per byte that has to move at least once (operands and result; of a convolution
the image itself, not its im2col form). CMR is the machine's peak FLOP/s over its peak bytes/s: a
layer above it is bound by compute. Definitions: facts of the utilisation study (Kosaian and
Phanishayee 2022, FoldedCNNs ICML'21), all rates measured on the machine at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

BATCH_MAX = 1 << 20
# A layer that takes less than so many empty calls is bound by neither compute nor memory.
CALLS = 3.0
# What a GPU multiplies on its tensor cores; fp32 goes there only where TF32 is allowed.
TENSOR_CORES = frozenset(("bfloat16", "float16", "int8"))
GPU_TILE = 128  # output rows and columns of one tile of a GPU's matrix kernels


@dataclass(frozen=True)
class Machine:
    """Measured rates of a device. `flops_per_s` by dtype; `call_us`: one operator on one number.
    `how`: how each was measured, for people."""

    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    call_us: float
    how: Mapping[str, str]

    def cmr(self, dtype: str) -> float | None:
        """FLOPs per byte at which both peaks are reached; None where the dtype has no peak."""
        peak = self.flops_per_s.get(dtype)
        return None if peak is None else peak / self.bytes_per_s


@dataclass(frozen=True)
class Work:
    """What one call has to do, for one batch size. `flops` None: torch cannot count them."""

    flops: int | None
    bytes: int
    bytes_im2col: int | None = None

    @property
    def intensity(self) -> float | None:
        return None if not self.flops or not self.bytes else self.flops / self.bytes


@dataclass(frozen=True)
class Use:
    """How well a layer uses its device. Shares are 0 to 1, None where there is nothing to say.

    `bound`: compute, memory, or call (the call itself takes the time). `compute`, `memory`:
    achieved over peak; `roofline`: achieved over what the roofline allows at this intensity.
    `idle_tensor_cores`: 1 - compute, which checks get for nothing; GPUs alone. `tile_waste`: share
    of a GPU's tiles that is padding. `batch_at_cmr`: from this batch on compute bounds it.
    """

    bound: str | None
    flops_per_s: float | None
    compute: float | None
    memory: float
    roofline: float | None
    idle_tensor_cores: float | None
    tile_waste: float | None
    batch_at_cmr: int | None


def use_of(
    work: Work,
    base_us: float,
    dtype: str,
    machine: Machine,
    *,
    on_gpu: bool,
    rows_columns: tuple[int, int] | None = None,
    batch_at_cmr: int | None = None,
) -> Use:
    """The use of a call of `work` that takes `base_us` microseconds."""
    seconds = base_us * 1e-6
    memory = work.bytes / seconds / machine.bytes_per_s
    peak, cmr, intensity = machine.flops_per_s.get(dtype), machine.cmr(dtype), work.intensity
    if peak is None or cmr is None or intensity is None or work.flops is None:
        return Use(None, None, None, memory, None, None, None, None)
    achieved = work.flops / seconds
    bound = "compute" if intensity > cmr else "memory"
    compute = achieved / peak
    return Use(
        bound="call" if base_us < CALLS * machine.call_us else bound,
        flops_per_s=achieved,
        compute=compute,
        memory=memory,
        roofline=achieved / min(peak, intensity * machine.bytes_per_s),
        idle_tensor_cores=_idle(compute, dtype) if on_gpu else None,
        tile_waste=tile_waste(*rows_columns) if on_gpu and rows_columns else None,
        batch_at_cmr=batch_at_cmr,
    )


def _idle(compute: float, dtype: str) -> float:
    return max(0.0, 1.0 - compute) if dtype in TENSOR_CORES else 1.0


def tile_waste(rows: int, columns: int) -> float:
    """Share of the output tiles that is padding, where a layer has `rows` x `columns` outputs."""
    padded = math.ceil(rows / GPU_TILE) * math.ceil(columns / GPU_TILE) * GPU_TILE**2
    return 1.0 - rows * columns / padded if padded else 0.0


def crossing(one: Work, two: Work, cmr: float) -> int | None:
    """The least batch whose intensity exceeds `cmr`, of the work at batch 1 and 2; None where no
    batch does. FLOPs and bytes are straight lines in the batch."""
    if one.flops is None or two.flops is None:
        return None
    flops_slope, bytes_slope = two.flops - one.flops, two.bytes - one.bytes
    # flops(b) > cmr bytes(b), with both as offset + slope b.
    gain = flops_slope - cmr * bytes_slope
    lack = cmr * (one.bytes - bytes_slope) - (one.flops - flops_slope)
    if lack < gain:
        return 1
    if gain <= 0:
        return None
    batch = math.floor(lack / gain) + 1
    return batch if batch <= BATCH_MAX else None
